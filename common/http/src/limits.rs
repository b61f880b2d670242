//! What a client allows itself and its server.

use std::time::Duration;

/// Bounds of one [`crate::HttpClient`]; every one is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at once; further requests wait for one.
    pub connections_max: usize,
    /// Name look-up, TCP and TLS together.
    pub connect_timeout: Duration,
    /// From a request's first byte sent to the end of the response's head.
    pub request_timeout: Duration,
    /// Between two pieces of a response's body.
    pub chunk_timeout: Duration,
    /// A kept connection that was idle for longer is not used again.
    pub idle_max: Duration,
    /// Bytes of a response's head, and of the read buffer; at least 8 KiB. The buffer grows by
    /// doubling, so that a head of up to twice this size may pass.
    pub header_bytes_max: usize,
    /// Headers of a response.
    pub headers_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 8,
            connect_timeout: Duration::from_secs(15),
            request_timeout: Duration::from_secs(120),
            chunk_timeout: Duration::from_secs(60),
            idle_max: Duration::from_secs(45),
            header_bytes_max: 64 << 10,
            headers_max: 128,
        }
    }
}

impl Limits {
    /// The least read buffer that hyper accepts.
    pub(crate) const HEADER_BYTES_LEAST: usize = 8 << 10;
}
