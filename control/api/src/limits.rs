//! Every bound of the API in one place. Units stand last in each name.
//!
//! What a client sends beyond one of these is refused with an error that names it.

/// Connections at once; further ones wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 512;
/// Of them, connections of one address.
pub const PEER_CONNECTIONS_MAX: usize = 128;
/// Seconds for a TLS handshake.
pub const HANDSHAKE_SECONDS_MAX: u64 = 10;
/// Seconds in which a request's head must have arrived; also how long a connection may be idle.
pub const HEAD_SECONDS_MAX: u64 = 60;
/// Bytes of a request's head, and of the read buffer.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// Headers of a request.
pub const HEADERS_MAX: usize = 64;
/// Seconds in which a request's body must have arrived.
pub const BODY_SECONDS_MAX: u64 = 30;
/// Bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Seconds that an answer may take; what takes longer is an operation that is looked at later.
pub const ANSWER_SECONDS_MAX: u64 = 90;
/// A client that takes nothing for so many seconds loses its connection.
pub const STALLED_SECONDS_MAX: u64 = 30;
/// Seconds that running requests get when the server stops.
pub const STOP_SECONDS_MAX: u64 = 10;

/// Failed log-ins of one address that are answered at once; then one in
/// [`LOGIN_REFILL_SECONDS`].
pub const LOGIN_FAILURES_BURST: u32 = 10;
/// See [`LOGIN_FAILURES_BURST`].
pub const LOGIN_REFILL_SECONDS: u64 = 6;
/// Addresses whose failures are remembered; beyond it the one that failed the longest ago goes.
pub const LOGIN_ADDRESSES_MAX: usize = 4096;
/// Bytes of an `Authorization` header.
pub const TOKEN_BYTES_MAX: usize = 256;

/// Live streams at once.
pub const STREAMS_MAX: usize = 128;
/// Events of a session's log that a stream reads at a time.
pub const STREAM_EVENTS: u32 = 256;
/// Milliseconds between two looks at a session.
pub const STREAM_POLL_MS: u64 = 1_000;
/// Seconds after which a silent stream says that it lives.
pub const STREAM_IDLE_SECONDS: u64 = 15;

/// Entries of a page at most, and where nothing else is asked for.
pub const PAGE_MAX: u32 = 500;
/// See [`PAGE_MAX`].
pub const PAGE_DEFAULT: u32 = 100;
/// Bytes of a value in a path.
pub const PATH_VALUE_BYTES_MAX: usize = 300;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 200;
/// Bytes of any other text in a request, unless its own bound says otherwise.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Entries of a list in a request.
pub const LIST_MAX: usize = 1000;
