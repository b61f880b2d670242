//! The plain types of the product: what is configured, what has been run.
//!
//! In: JSON of the REST API or of the database. Out: the same; [`Job::validate`] and its like say
//! what is wrong with a record, by field. Every record bears an [`Id`]. Invariant: plain data without
//! I/O or clock; times are milliseconds since 1970 (UTC), sizes are bytes; no type here holds a
//! secret: [`SecretSlot`] says where one is kept.

mod check;
mod id;
mod text;
mod schema;
mod time;
mod network;
mod secret_slot;
mod infrastructure;
mod selection;
mod schedule;
mod application;
mod job;
mod session;
mod access;
mod traffic;
mod setting;

pub use access::{CredentialRecord, EnrolmentRecord, MoverRecord, MoverRole, Role, TokenRecord};
pub use application::{
    ApplicationPolicy, ApplicationSettings, GuestScript, Quiesce, ScriptSource, VmCredential,
};
pub use check::Invalid;
pub use id::{Id, IdError};
pub use infrastructure::{Proxy, Repository, VCenter};
pub use job::{CbtSettings, Job, ProxyChoice, Retries, TransportPolicy};
pub use network::NetworkRange;
pub use schedule::{ActiveFull, Schedule};
pub use secret_slot::SecretSlot;
pub use selection::{DiskExclusion, Selection};
pub use session::{
    EventRecord, SessionKind, SessionRecord, SessionResult, SessionState, SessionTotals, Severity,
    TaskRecord, Trigger, VmRunRecord,
};
pub use setting::Setting;
pub use time::{TimeOfDay, TimeRange, WeekWindows, Weekday};
pub use traffic::TrafficRule;

#[cfg(test)]
mod tests;
