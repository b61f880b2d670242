//! When a backup starts, where each disk is read, how fast it may travel: Gantry's decisions.
//!
//! In: facts about proxies, repositories, datastores and networks; requests of job sessions; the
//! time, always as an argument. Out: decisions with a reason that an administrator understands.
//! Invariant: the same calls in the same order give the same answers. Must not: read a clock, draw a
//! random number, do I/O, start a thread; gantryd carries decisions out and reports what came of them.

pub mod names;
pub mod limits;
pub mod resources;
pub mod request;
pub mod placement;
pub mod decision;
pub mod scheduler;
pub mod schedule;
pub mod traffic;
pub mod latency;

pub use decision::{Assignment, Decision, HoldReason, OpenReason};
pub use gantry_common::transport_mode::TransportMode;
pub use latency::{LatencyGuard, LatencyLimits};
pub use names::{
    DatastoreName, JobName, ProxyName, RepositoryName, SessionName, SessionVm, TaskId, VmName,
};
pub use request::{DiskRequest, VmRequest};
pub use resources::{Datastore, GuardState, Proxy, Repository};
pub use scheduler::{Cancelled, RequestError, Scheduler};
