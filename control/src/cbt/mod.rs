//! Changed block tracking: whether it can be trusted, and what it says.
//!
//! In: facts of a disk and its last restore point; vCenter's answers. Out: the extents that have
//! changed, or an *explained full*: a typed reason why everything is read, and how much that is.
//! Invariant: any doubt leads to a full read, never to a guess. [`decide`](decide::decide) and
//! [`AreaCollector`] are pure; only
//! [`query`], [`history`](history::History) and [`reset`](reset::reset) talk to the network.
//!
//! Sources: the vSphere API reference; VSPHERE.md "CBT rules".

pub mod change_id;
pub mod areas;
pub mod decide;
pub mod query;
pub mod history;
pub mod reset;

pub use areas::{AreaCollector, AreasRefused, Page};
pub use change_id::ChangeId;
pub use decide::{
    BaseFacts, CbtFacts, ChangeIdFact, Decision, FullReason, Policy, PolicyOutcome, Tracking,
    decide, tracking,
};
pub use history::History;
pub use query::{QueryError, allocated_extents, changed_extents, enable_tracking};
pub use reset::{ResetCause, ResetError, ResetPolicy, ResetRefused, may_reset, reset};
