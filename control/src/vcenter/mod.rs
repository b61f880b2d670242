//! A typed client of the vSphere Web Services (SOAP), thin: the methods that a backup needs.
//!
//! In: [`Settings`] and calls. Out: typed answers, or a [`VimError`] that names the virtual
//! machine, the method and the fault. Works against a vCenter and against a standalone ESXi.
//!
//! The way of a call: a method's file writes its arguments in the order that the service's schema
//! demands ([`xml_writer`]), [`session`] logs in when needed and repeats what may be repeated,
//! [`soap`] packs and unpacks the envelope, [`xml`] reads the answer within bounds.
//!
//! Must not: print a password or a cookie; repeat a call that may have changed something without
//! looking first.

pub mod moref;
pub mod xml;
pub mod xml_writer;
pub mod fault;
pub mod error;
pub mod soap;
pub mod retry;
pub mod session;
pub mod service;
pub mod property;
pub mod updates;
pub mod task;
pub mod inventory;
pub mod virtual_machine;
pub mod registration;
pub mod datastore_file;
pub mod changed_areas;
pub mod lease;
pub mod guest;
pub mod events;

pub use changed_areas::{ChangedAreas, DiskChangeQuery};
pub use error::{ErrorKind, VimError};
pub use fault::{Fault, FaultKind};
pub use gantry_common::secret::Secret;
pub use guest::{Guest, GuestError, GuestLogin};
pub use moref::{MoRef, VmRef};
pub use registration::Registration;
pub use service::{ServiceContent, ServiceTicket};
pub use session::{Settings, VCenter};
pub use task::{TaskEnd, TaskWait};
pub use xml::Element;
