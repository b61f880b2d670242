//! Restores over the memory transport, from honest and other repositories.

mod disks;
mod fake;
mod hostile;
mod read_engines;
mod resuming;
mod roads;
mod served;
