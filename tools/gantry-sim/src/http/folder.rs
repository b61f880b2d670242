//! `/folder`: files of datastores by HTTPS, whole or in ranges (RFC 9110, section 14).
//!
//! In: `/folder/PATH?dcPath=DATACENTER&dsName=DATASTORE`. Out: the file. 401 without a session, a
//! ticket or a password; 404 for what is not there; 500 while somebody else holds the file, as ESXi
//! answers.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE,
    WWW_AUTHENTICATE,
};
use hyper::{Method, Response, StatusCode};

use super::{Body, access, stream, text};
use crate::limits;
use crate::sim::{Kind, Sim};
use crate::storage::{DatastorePath, FolderFile, StorageError};

/// Answers a request for a datastore's file.
pub async fn serve(
    sim: Arc<Sim>,
    endpoint: usize,
    request: &hyper::http::request::Parts,
) -> Response<Body> {
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let method = request.method.as_str();
    if !access::allowed(&sim, endpoint, method, target, &request.headers) {
        let mut refused = plain(StatusCode::UNAUTHORIZED, "Authentication is required.");
        let realm = HeaderValue::from_static("Basic realm=\"VMware HTTP server\"");
        refused.headers_mut().insert(WWW_AUTHENTICATE, realm);
        return refused;
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD or PUT");
    }
    let path = match path(&sim, endpoint, request.uri.path(), request.uri.query()) {
        Ok(path) => path,
        Err(why) => return plain(StatusCode::NOT_FOUND, &why),
    };
    let (storage, store) = (sim.storage.clone(), path.datastore().to_owned());
    let opened = tokio::task::spawn_blocking(move || storage.folder_open(&path)).await;
    let file = match opened {
        Ok(Ok(file)) => file,
        Ok(Err(error)) => return refusal(&error),
        Err(_) => return plain(StatusCode::INTERNAL_SERVER_ERROR, "The file cannot be opened."),
    };
    let wanted_text = request.headers.get(RANGE).map(|range| range.to_str().unwrap_or_default());
    let wanted = wanted(wanted_text, file.len());
    let reachable = move || check_accessible(&sim, &store).map_err(io::Error::other);
    answer(file, wanted, request.method == Method::HEAD, reachable)
}

fn plain(status: StatusCode, what: &str) -> Response<Body> {
    text(status, "text/plain", format!("{what}\n"))
}

pub(super) fn refusal(error: &StorageError) -> Response<Body> {
    let status = match error {
        StorageError::NotFound { .. } => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    plain(status, &error.to_string())
}

/// The file that an address names.
pub(super) fn path(
    sim: &Sim,
    at: usize,
    path: &str,
    query: Option<&str>,
) -> Result<DatastorePath, String> {
    let file = decode(path.strip_prefix("/folder").unwrap_or_default()).ok_or("a wrong address")?;
    let query = query.unwrap_or_default();
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).and_then(|(_, value)| decode(&value.replace('+', " ")))
    };
    let store = value("dsName").ok_or("the address has no dsName")?;
    let state = sim.lock();
    let found = state.site.datastores.iter().find(|found| found.name == store);
    let found = found.ok_or_else(|| format!("there is no datastore {store}"))?;
    let seen = match state.endpoints[at].kind {
        Kind::VCenter => {
            value("dcPath").is_none_or(|dc| dc == state.site.datacenters[found.datacenter].name)
        }
        Kind::Host(host) => found.hosts.contains(&host),
    };
    if !seen || !found.accessible {
        return Err(format!("datastore {store} is not accessible here"));
    }
    DatastorePath::new(&store, file.trim_start_matches('/')).map_err(|error| error.to_string())
}

/// Whether hosts reach a datastore.
pub(super) fn check_accessible(sim: &Sim, name: &str) -> Result<(), StorageError> {
    let state = sim.lock();
    if state.site.datastores.iter().any(|store| store.name == name && store.accessible) {
        return Ok(());
    }
    Err(StorageError::Invalid(format!("datastore {name} is not accessible")))
}

/// Decodes `%20` and the like.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    Impossible,
}

fn wanted(header: Option<&str>, length: u64) -> Wanted {
    let Some(ranges) = header.and_then(|header| header.strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    // Several ranges at once may be ignored, and are.
    let Some((first, last)) = ranges.split_once('-').filter(|_| !ranges.contains(',')) else {
        return Wanted::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    let range = if first.is_empty() {
        last.parse().map(|count: u64| length.saturating_sub(count)..length)
    } else if last.is_empty() {
        first.parse().map(|first| first..length)
    } else {
        let last = last.parse().map(|last: u64| last.saturating_add(1).min(length));
        first.parse().and_then(|first| last.map(|end| first..end))
    };
    match range {
        Ok(range) if range.start < range.end => Wanted::Part(range),
        Ok(_) => Wanted::Impossible,
        Err(_) => Wanted::Whole,
    }
}

fn answer(
    file: FolderFile,
    wanted: Wanted,
    head: bool,
    reachable: impl Fn() -> io::Result<()> + Send + 'static,
) -> Response<Body> {
    let length = file.len();
    let (status, range) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..length),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Impossible => {
            let mut refused = plain(StatusCode::RANGE_NOT_SATISFIABLE, "The range is not there.");
            set(&mut refused, CONTENT_RANGE, format!("bytes */{length}"));
            return refused;
        }
    };
    let size = range.end - range.start;
    let last = range.end.saturating_sub(1);
    let partial = status == StatusCode::PARTIAL_CONTENT;
    let content_range = partial.then(|| format!("bytes {}-{last}/{length}", range.start));
    let mut response =
        Response::new(if head { stream::empty() } else { content(file, range, reachable) });
    *response.status_mut() = status;
    set(&mut response, CONTENT_LENGTH, size.to_string());
    set(&mut response, CONTENT_TYPE, "application/octet-stream".into());
    set(&mut response, ACCEPT_RANGES, "bytes".into());
    if let Some(content_range) = content_range {
        set(&mut response, CONTENT_RANGE, content_range);
    }
    response
}

fn set(response: &mut Response<Body>, name: hyper::header::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(name, value);
    }
}

fn content(
    file: FolderFile,
    mut range: Range<u64>,
    reachable: impl Fn() -> io::Result<()> + Send + 'static,
) -> Body {
    stream::body(move || {
        if range.is_empty() {
            return Ok(None);
        }
        // A datastore that is lost meanwhile takes the connection with it.
        reachable()?;
        let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut piece = vec![0; left.min(limits::READ_BYTES)];
        file.read_at(range.start, &mut piece).map_err(io::Error::other)?;
        range.start += piece.len() as u64;
        Ok(Some(Bytes::from(piece)))
    })
}

#[cfg(test)]
mod tests {
    use super::{Wanted, decode, wanted};

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        assert_eq!(wanted(Some("bytes=0-9"), 100), Wanted::Part(0..10));
        assert_eq!(wanted(Some("bytes=90-"), 100), Wanted::Part(90..100));
        assert_eq!(wanted(Some("bytes=-5"), 100), Wanted::Part(95..100));
        assert_eq!(wanted(Some("bytes=50-500"), 100), Wanted::Part(50..100));
        assert_eq!(wanted(Some("bytes=100-"), 100), Wanted::Impossible);
        assert_eq!(wanted(Some("bytes=9-3"), 100), Wanted::Impossible);
        assert_eq!(wanted(Some("bytes=0-18446744073709551615"), 100), Wanted::Part(0..100));
        for whole in [None, Some("x"), Some("bytes=a-b"), Some("bytes=0-1,5-6")] {
            assert_eq!(wanted(whole, 100), Wanted::Whole);
        }
    }

    #[test]
    fn addresses_are_decoded() {
        assert_eq!(decode("a%20b").as_deref(), Some("a b"));
        assert_eq!(decode("%zz"), None);
        assert_eq!(decode("%2"), None);
    }
}
