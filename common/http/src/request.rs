//! One request: method, path, headers, body, and whether repeating it is harmless.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Uri};

/// A request to a [`crate::HttpClient`]'s endpoint. `Host` and `Content-Length` are set by the
/// client.
#[derive(Clone)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) idempotent: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) refused: Option<String>,
}

impl fmt::Debug for Request {
    /// Without the body, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl Request {
    /// A request of any method; `path` begins with a slash, is already percent-encoded and may
    /// hold a query.
    pub fn new(method: Method, path: impl Into<String>) -> Request {
        let idempotent = method.is_idempotent();
        Request {
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            idempotent,
            timeout: None,
            refused: None,
        }
    }

    /// A GET.
    pub fn get(path: impl Into<String>) -> Request {
        Request::new(Method::GET, path)
    }

    /// A POST with this body; not repeated unless [`Request::idempotent`] says so.
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Request {
        let mut request = Request::new(Method::POST, path);
        request.body = body.into();
        request
    }

    /// A PUT with this body; it may be repeated, as HTTP has it.
    pub fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Request {
        let mut request = Request::new(Method::PUT, path);
        request.body = body.into();
        request
    }

    /// Sets a header. A value with control characters makes the request fail, unsent.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: impl AsRef<[u8]>) -> Request {
        match HeaderValue::from_bytes(value.as_ref()) {
            Ok(mut value) => {
                value.set_sensitive(is_secret(&name));
                self.headers.insert(name, value);
            }
            Err(_) => self.refused = Some(format!("the value of header {name} is not allowed")),
        }
        self
    }

    /// Asks for `length` bytes from `start` (`Range: bytes=…`); `length` is at least 1.
    #[must_use]
    pub fn range(self, start: u64, length: u64) -> Request {
        let last = start.saturating_add(length.max(1)).saturating_sub(1);
        self.header(hyper::header::RANGE, format!("bytes={start}-{last}"))
    }

    /// Says whether the request may be repeated when it is unknown if the server acted on it.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Request {
        self.idempotent = idempotent;
        self
    }

    /// Another limit than [`crate::Limits::request_timeout`], for calls that wait on purpose.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Request {
        self.timeout = Some(timeout);
        self
    }

    /// What hyper sends: `host` is the `Host` header.
    pub(crate) fn build(&self, host: &str) -> Result<hyper::Request<super::client::Body>, String> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let uri: Uri = self.path.parse().map_err(|_| "the path is not allowed".to_owned())?;
        if uri.authority().is_some() || !self.path.starts_with('/') {
            return Err("the path must begin with a slash".into());
        }
        let mut request = hyper::Request::new(super::client::Body::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let host = HeaderValue::from_str(host).map_err(|error| error.to_string())?;
        request.headers_mut().insert(hyper::header::HOST, host);
        Ok(request)
    }
}

/// Headers whose values are never printed.
fn is_secret(name: &HeaderName) -> bool {
    [hyper::header::COOKIE, hyper::header::AUTHORIZATION].contains(name)
}
