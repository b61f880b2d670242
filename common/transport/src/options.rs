//! What may be set about a connection, with the values that measured best (see DATAPLANE §3).
//!
//! In: nothing. Out: [`Options`]. Must not: name what `limits` names.

use std::time::Duration;

/// Which way frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportKind {
    /// QUIC, and TCP where QUIC gets no answer.
    #[default]
    Auto,
    /// QUIC over UDP.
    Quic,
    /// TLS 1.3 over TCP.
    Tcp,
    /// Within one process.
    Memory,
}

/// Settings of connections.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which way a client goes.
    pub kind: TransportKind,
    /// Silence after which a peer counts as lost.
    pub idle: Duration,
    /// Time between signs of life when nothing else is sent.
    pub keep_alive: Duration,
    /// Longest time from the first byte to a usable connection.
    pub handshake_max: Duration,
    /// How long `Auto` waits for QUIC before it turns to TCP.
    pub quic_attempt_max: Duration,
    /// Largest UDP payload that is probed for: 8972 fills an Ethernet jumbo frame (9000 − 28).
    pub mtu_bytes_max: u16,
    /// Bytes in flight towards us on one lane.
    pub lane_window_bytes: u32,
    /// Bytes in flight towards us on a connection. More than the socket's buffer only loses
    /// packets.
    pub receive_window_bytes: u32,
    /// Bytes sent and not acknowledged.
    pub send_window_bytes: u64,
    /// SO_SNDBUF and SO_RCVBUF of the UDP socket.
    pub socket_buffer_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            kind: TransportKind::Auto,
            idle: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            handshake_max: Duration::from_secs(10),
            quic_attempt_max: Duration::from_secs(3),
            mtu_bytes_max: 8972,
            lane_window_bytes: 2 << 20,
            receive_window_bytes: 4 << 20,
            send_window_bytes: 16 << 20,
            socket_buffer_bytes: 4 << 20,
        }
    }
}
