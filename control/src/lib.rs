//! The control plane: jobs, scheduler, broker, vCenter, throttling shares, REST API.
//!
//! Empty until there is something that runs: this crate exists so that the workspace has its final
//! shape and the direction of its dependencies (`control` knows `common` only) is held by a test.

pub mod ledger;
pub mod transport;
