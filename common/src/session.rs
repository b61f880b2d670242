//! A backup session between two movers, without I/O: the sender and the receiver.
//!
//! In: frames, work done by the pipeline or the store, the loss of a connection. Out: frames to
//! send, commands for the pipeline or the store. `handle_*` takes input, `poll_*` gives output.

pub mod source_port;
pub mod store_port;
