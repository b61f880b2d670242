//! Gantry's shared vocabulary, used by the control plane and the data plane.
//!
//! In: nothing. Out: ids, units, extents, limits, error kinds, wire messages and the two
//! sans-IO session machines. Invariant: this crate does no I/O, reads no clock, starts no
//! thread and has no unsafe code; time, randomness and bytes come in as arguments.

pub mod hex;
pub mod ids;
pub mod units;
pub mod extents;
pub mod limits;
pub mod failure;
pub mod secret;
pub mod source;
pub mod transport_mode;
pub mod wire;
pub mod work;
pub mod stages;
pub mod control;
pub mod enrolment;
pub mod policy;
pub mod manage;
pub mod session;
