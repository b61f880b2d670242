//! Gantry's data plane. The modules stand in the order in which a block travels; see
//! ARCHITECTURE.md for the map.
//!
//! In: disks, links, a repository directory. Out: restore points, restored disks.
//! Must not: decide when or what to back up (the control plane does), write to a source.

pub use gantry_transport as transport;
pub use gantry_transport::payload;

pub mod disk;
pub mod unit;
pub mod reader;
pub mod filter;
pub mod filters;
pub mod compress;
pub mod send;
pub mod receive;
pub mod store;
pub mod pipeline;
pub mod repository;
pub mod restore;
pub mod stats;
pub mod host;
pub mod connect;
pub mod manage;
pub mod backup;
pub mod enrol;
pub mod agent;
pub mod serve;
pub mod cli;
