//! NBD addresses as people write them (the "NBD URI" of the NBD project's doc/uri.md).
//!
//! In: `nbd://HOST[:PORT]/EXPORT`, `nbds://...`, `nbd+unix:///EXPORT?socket=PATH`,
//! `nbds+unix:///...`, with libnbd's `tls-certificates=FOLDER` (ca-cert.pem, client-cert.pem,
//! client-key.pem), and `tls-thumbprint`, `tls-hostname`, `connections`. Out: an [`NbdSource`].

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::{NbdAddress, NbdSource, NbdTls, SourceSpecError};

/// The port of NBD where none is given (IANA).
pub const PORT: u16 = 10_809;

/// What follows the scheme.
struct Parts<'a> {
    authority: &'a str,
    path: &'a str,
    query: &'a str,
}

/// An NBD address; nothing if the text does not begin as one.
pub fn parse(text: &str) -> Option<Result<NbdSource, SourceSpecError>> {
    let (scheme, rest) = text.split_once("://")?;
    let (unix, tls) = match scheme {
        "nbd" => (false, false),
        "nbds" => (false, true),
        "nbd+unix" => (true, false),
        "nbds+unix" => (true, true),
        _ => return None,
    };
    let wrong = |what: String| SourceSpecError { source_name: text.to_owned(), what };
    Some(source(rest, unix, tls).map_err(wrong))
}

fn source(rest: &str, unix: bool, tls: bool) -> Result<NbdSource, String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let parts = Parts { authority, path, query };
    let mut socket = None;
    let mut connections = 0;
    let mut settings = NbdTls::default();
    for (name, value) in parts.query.split('&').filter(|pair| !pair.is_empty()).map(pair) {
        let value = decode(value)?;
        match name {
            "socket" => socket = Some(PathBuf::from(value)),
            "connections" => {
                connections = value.parse().map_err(|_| format!("connections={value}?"))?;
            }
            "tls-certificates" => settings = certificates(Path::new(&value), settings),
            "tls-thumbprint" => settings.thumbprint = Some(value),
            "tls-hostname" => settings.server_name = Some(value),
            other => return Err(format!("'{other}' is no part of an NBD address")),
        }
    }
    if tls && settings.ca_file.is_none() && settings.thumbprint.is_none() {
        return Err("with TLS, say whom to trust: ?tls-certificates=FOLDER (with ca-cert.pem) or \
                    ?tls-thumbprint=SHA-256"
            .into());
    }
    let address = match (unix, socket) {
        (true, Some(path)) if parts.authority.is_empty() => NbdAddress::Unix { path },
        (true, _) => return Err("expected nbd+unix:///EXPORT?socket=PATH".into()),
        (false, None) => tcp(parts.authority)?,
        (false, Some(_)) => return Err("a socket goes with nbd+unix://".into()),
    };
    let tls = tls.then_some(settings);
    Ok(NbdSource { address, export: decode(parts.path)?, tls, connections })
}

/// libnbd's names of the files in a folder of certificates; the client's are optional.
fn certificates(folder: &Path, settings: NbdTls) -> NbdTls {
    let client = |name: &str| Some(folder.join(name));
    NbdTls {
        ca_file: Some(folder.join("ca-cert.pem")),
        client_certificate: client("client-cert.pem"),
        client_key: client("client-key.pem"),
        ..settings
    }
}

fn tcp(authority: &str) -> Result<NbdAddress, String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("an address in [ has no ]")?,
        None => match authority.find(':') {
            Some(colon) => authority.split_at(colon),
            None => (authority, ""),
        },
    };
    if host.is_empty() {
        return Err("expected nbd://HOST:PORT/EXPORT".into());
    }
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| format!("'{port}' is no port"))?,
        None if port.is_empty() => PORT,
        None => return Err("expected nbd://HOST:PORT/EXPORT".into()),
    };
    Ok(NbdAddress::Tcp { host: decode(host)?, port })
}

fn pair(text: &str) -> (&str, &str) {
    text.split_once('=').unwrap_or((text, ""))
}

fn decode(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| format!("'{text}' is no UTF-8"))
}
