//! Gantry's configuration database: what an administrator has set up, and what has been run.
//!
//! In: records of the product's types ([`model`]). Out: the same, as they were kept. Invariant:
//! knows nothing of vSphere, movers or HTTP; decides nothing about jobs.

pub mod model;
