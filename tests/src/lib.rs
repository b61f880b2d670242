//! What scenarios stand on: movers as processes, real disk images, loop devices, small file
//! systems, faults, and comparison bit for bit.
//!
//! In: the programs of this workspace. Out: tools for the tests in `tests/tests/`, one file a
//! theme. Invariant: whatever a scenario makes (processes, loop devices, mounts, folders) is gone
//! when it ends, also when it fails. Everything here panics with the reason when it cannot go on:
//! it stands only under tests.
//!
//! Environment: `GANTRY_CORPUS` names a folder built by `cargo xtask corpus` (without it small
//! images are made on the spot); `GANTRY_SEED` repeats one run of a random scenario,
//! `GANTRY_SEEDS=20` runs more of them.

pub mod scratch;
pub mod servers;
pub mod seeds;
pub mod program;
pub mod site;
pub mod backup;
pub mod restore;
pub mod corpus;
pub mod images;
pub mod compare;
pub mod devices;
pub mod relay;
pub mod hostile;
pub mod simulated;
pub mod vcsim;
pub mod vsphere;
pub mod gantryd;
pub mod moments;
pub mod served;
pub mod guest_disk;
