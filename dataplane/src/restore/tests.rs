//! Restores over the memory transport, from honest and other repositories.

mod disks;
mod fake;
mod hostile;
mod resuming;
mod roads;
