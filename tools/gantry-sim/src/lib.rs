//! A simulated vCenter with ESXi hosts over TLS, for tests, demonstrations and fault drills.
//!
//! In: an inventory and disk images. Out: endpoints that official clients accept: the SOAP API,
//! datastore access by HTTPS, NFC leases. Every listener is on the loopback interface. Must not be
//! used by Gantry's own crates: only tests, benchmarks and tools know it.
//!
//! A request's way: [`http`] → [`soap`] and [`xml`] → [`methods`] → [`sim`] (the [`site`], shown as
//! managed objects of each endpoint's [`model`]) → [`schema`] encodes the answer.

pub mod cli;
pub mod launch;
pub mod http;
pub mod soap;
pub mod xml;
pub mod methods;
pub mod collector;
pub mod sim;
pub mod session;
pub mod ticket;
pub mod tasks;
pub mod events;
pub mod drill;
pub mod requests;
pub mod lease;
pub mod service;
pub mod site;
pub mod model;
pub mod schema;
pub mod disks;
pub mod storage;
pub mod guest;
pub mod fault;
pub mod limits;
