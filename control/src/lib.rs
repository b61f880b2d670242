//! The control plane: what talks to vSphere, and what decides about it.
//!
//! In: a vCenter's or ESXi's address and credentials, and what is to be backed up. Out: facts,
//! decisions and actions on virtual machines. Knows `common` and `http` only and never touches
//! block data.
//!
//! * [`vcenter`]: the typed client of the vSphere Web Services.
//! * [`broker`]: the inventory of a vCenter, selection, a machine's configuration.
//! * [`snapshots`]: what can be snapshotted; making, finding and removing snapshots.
//! * [`cbt`]: what has changed since the last restore point, or why everything is read.
//! * [`application`]: scripts in a guest, before and after the snapshot.
//! * [`transport`]: which transport modes can reach a frozen disk, and why not the others.
//! * [`hotadd`]: a frozen disk attached to the proxy VM, and detached again.
//! * [`durable_file`]: small files that are replaced as a whole.
//! * [`ledger`]: what a session leaves behind in vSphere until it is undone.
//! * [`mover`]: the data mover as a child process.
//! * [`probe`]: what a vCenter says about itself, read-only.
//! * [`authority`]: the installation's certificate authority.
//! * [`run`]: one backup of one machine, and what an interrupted one left.
//! * [`local`]: this host as the only proxy, without a service.
//! * [`daemon`]: gantryd, the service.
//! * [`fleet`]: the movers under gantryd, and the tasks that they carry out.
//! * [`client`]: gantryd's REST API from outside.
//! * [`config`], [`cli`]: the command `gantry`.
//! * [`limits`]: every bound of the control plane.

pub mod limits;
pub mod vcenter;
pub mod broker;
pub mod snapshots;
pub mod cbt;
pub mod application;
pub mod transport;
pub mod hotadd;
pub use gantry_transport::durable_file;
pub mod ledger;
pub mod mover;
pub mod probe;
pub mod authority;
pub mod run;
pub mod local;
pub mod daemon;
pub mod fleet;
pub mod config;
pub mod client;
pub mod cli;
