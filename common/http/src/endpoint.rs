//! Where a server listens: host and port, IPv6 included.
//!
//! In: `host`, `host:port`, `[::1]:port`. Out: an [`Endpoint`] that prints the same way.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls::pki_types::ServerName;

/// The port of HTTPS.
const PORT_DEFAULT: u16 = 443;

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// A text that names no server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' names no server: expected HOST, HOST:PORT or [IPv6]:PORT")]
pub struct EndpointParseError(String);

impl Endpoint {
    /// A server by name or IP address (IPv6 without brackets) and port.
    ///
    /// # Errors
    /// When the host is neither a DNS name nor an address, or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Endpoint, EndpointParseError> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if port == 0 || ServerName::try_from(bare).is_err() {
            return Err(EndpointParseError(host.chars().take(120).collect()));
        }
        Ok(Endpoint { host: bare.to_owned(), port })
    }

    /// The host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Another host, the same port: a lease or a datastore may name the host that serves it.
    ///
    /// # Errors
    /// As [`Endpoint::new`].
    pub fn with_host(&self, host: &str) -> Result<Endpoint, EndpointParseError> {
        Endpoint::new(host, self.port)
    }

    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, EndpointParseError> {
        ServerName::try_from(self.host.clone()).map_err(|_| EndpointParseError(self.host.clone()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointParseError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointParseError> {
        let error = || EndpointParseError(text.chars().take(120).collect());
        if text.parse::<IpAddr>().is_ok() {
            return Endpoint::new(text, PORT_DEFAULT);
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => {
                if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
                    return Err(error());
                }
                Endpoint::new(host, port.parse().map_err(|_| error())?).map_err(|_| error())
            }
            _ => Endpoint::new(text, PORT_DEFAULT).map_err(|_| error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn names_and_addresses_parse_and_print() {
        for (text, printed) in [
            ("vcenter.example", "vcenter.example:443"),
            ("vcenter.example:8443", "vcenter.example:8443"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("::1", "[::1]:443"),
            ("[::1]", "[::1]:443"),
            ("[fe80::1]:8989", "[fe80::1]:8989"),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), printed);
            assert_eq!(endpoint.to_string().parse::<Endpoint>().as_ref(), Ok(&endpoint));
        }
        for bad in
            ["", ":443", "a b", "host:", "host:0", "host:70000", "a/b", "1:2:3:443x", "x:y:1"]
        {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
