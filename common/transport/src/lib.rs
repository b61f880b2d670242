//! Moving frames between two movers: QUIC, TLS over TCP where UDP is blocked, and memory.
//!
//! In: addresses, an identity, a trust. Out: a [`Connection`] with one sender and one receiver,
//! the same for all three. Invariants: both peers are authenticated before the first frame; memory
//! is bounded by the receive pool and `limits`; order holds within a stream, never between
//! streams. Must not: know what the frames mean.

pub mod payload;
mod options;
mod error;
pub mod durable_file;
mod secret_file;
mod identity;
mod ca;
mod trust;
mod tls;
mod ticket;
mod link;
mod frame_io;
mod pacer;
mod udp;
mod reset;
mod quic;
mod queue;
mod tcp;
mod memory;
mod connect;
mod listener;
mod control_link;

pub use ca::{CertificateAuthority, CertificateRequest};
pub use connect::connect;
pub use control_link::{
    ControlConnection, ControlListener, ControlMessage, ControlReceiver, ControlSender,
    control_connect,
};
pub use error::{CloseReason, TransportError};
pub use frame_io::{Channel, InFrame, OutFrame};
pub use identity::{Identity, NewKey};
pub use link::{Connection, FrameReceiver, FrameSender, LinkStats, PeerInfo};
pub use listener::Listener;
pub use memory::{MEMORY_PIN, pair};
pub use options::{Options, TransportKind};
pub use pacer::{BURST_MS, Pacer};
pub use secret_file::{CredentialError, read_secret, write_secret};
pub use ticket::{Claim, Revoked, Rights, Ticket, TicketError, TicketKey};
pub use trust::Trust;

#[cfg(test)]
mod tests;
