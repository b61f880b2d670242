//! HTTP/1.1 over TLS as Gantry needs it: calls of a vCenter's web services and ranged reads of a
//! datastore.
//!
//! In: an [`Endpoint`], how its certificate is trusted ([`Trust`]), [`Limits`] and [`Request`]s.
//! Out: [`Response`]s whose bodies are read in bounded pieces. Connections are kept and used
//! again, up to a limit; a [`HttpClient`] is cheap to clone and shares them.
//!
//! Must not: follow redirects (they would carry a session cookie to another host), keep cookies,
//! know anything of vSphere, or repeat a request that a server may have acted on.

mod endpoint;
mod trust;
mod limits;
mod error;
mod request;
mod connection;
mod pool;
mod client;
mod response;

pub use client::HttpClient;
pub use endpoint::{Endpoint, EndpointParseError};
pub use error::{HttpError, TimedOut};
pub use hyper::header;
pub use hyper::{HeaderMap, Method, StatusCode};
pub use limits::Limits;
pub use request::Request;
pub use response::Response;
pub use trust::{Thumbprint, ThumbprintParseError, Trust};
