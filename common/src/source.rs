//! What a source mover is told to read: where a disk is and how it is reached.
//!
//! In: JSON from the control plane or a spec file, or an address that a person typed. Out: a
//! [`SourceSpec`] whose bounds were checked. Invariant: `Debug` shows no secret. Must not: open or
//! look up anything; what is behind a path or a host is the mover's to find out.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::secret::Secret;

pub mod nbd_uri;

/// How a file is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceFormat {
    /// By its content: a VMDK if it is one, else raw.
    #[default]
    Auto,
    /// The bytes of the file are the bytes of the disk.
    Raw,
    /// A VMDK: descriptor with extents, sparse file, or stream-optimised file.
    Vmdk,
}

/// Whose certificate a TLS server may show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerTrust {
    /// The certificate with this SHA-256 digest (hexadecimal, colons allowed), whoever signed it.
    Thumbprint(String),
    /// One signed by these authorities (PEM text) for the name that is connected to.
    CaPem(String),
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NbdAddress {
    /// Over TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Through a socket of this machine.
    Unix {
        /// The socket.
        path: PathBuf,
    },
}

/// TLS of an NBD connection. Exactly one of `ca_file` and `thumbprint` says whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdTls {
    /// PEM file with the authorities.
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of the server's certificate.
    pub thumbprint: Option<String>,
    /// PEM file with this side's certificate, where the server wants one.
    pub client_certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub client_key: Option<PathBuf>,
    /// Name in the server's certificate; default: the host.
    pub server_name: Option<String>,
}

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdSource {
    /// Where the server is.
    pub address: NbdAddress,
    /// Name of the export; may be empty.
    #[serde(default)]
    pub export: String,
    /// TLS, if it is to be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<NbdTls>,
    /// Connections at most; fewer where the server does not allow several. Zero: as usual.
    #[serde(default)]
    pub connections: u16,
}

/// How a request to a host's datastore access is authorised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HttpAuth {
    /// Nothing is sent.
    None,
    /// A session's cookie: the whole `Cookie` header, such as `vmware_soap_session="..."`.
    Cookie(Secret),
    /// A generic service ticket of `AcquireGenericServiceTicket`.
    Ticket(Secret),
    /// User and password with each request.
    Basic {
        /// User.
        user: String,
        /// Password.
        password: Secret,
    },
    /// A file (mode 0600) with one of the above as JSON; read again when the server refuses.
    File(PathBuf),
}

/// A disk that a vCenter or ESXi host serves over HTTPS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpsSource {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whose certificate it may show.
    pub trust: ServerTrust,
    /// Path and query, percent-encoded: `/folder/vm/vm-flat.vmdk?dcPath=...&dsName=...`.
    pub path_and_query: String,
    /// Bytes of the disk, as the inventory says.
    pub size_bytes: u64,
    /// Authorisation.
    pub auth: HttpAuth,
    /// Connections. Zero: as usual.
    #[serde(default)]
    pub connections: u16,
    /// Requests in flight over all connections. Zero: as usual.
    #[serde(default)]
    pub in_flight: u16,
}

/// A disk as one export stream of an HttpNfcLease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NfcSource {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whose certificate it may show.
    pub trust: ServerTrust,
    /// Path and query of the lease's device URL.
    pub path_and_query: String,
    /// Bytes of the disk, as the inventory says.
    pub size_bytes: u64,
    /// Authorisation.
    pub auth: HttpAuth,
}

/// One disk to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceSpec {
    /// A file or block device.
    Path {
        /// Where.
        path: PathBuf,
        /// What it is.
        #[serde(default)]
        format: SourceFormat,
    },
    /// A disk that was attached to this machine and is known by its UUID only (hot-add).
    DeviceByUuid {
        /// The disk's UUID, with or without dashes.
        uuid: String,
        /// Folder in which devices stand under names that hold the UUID; default
        /// `/dev/disk/by-id`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        folder: Option<PathBuf>,
    },
    /// An export of an NBD server.
    Nbd(NbdSource),
    /// Ranged reads of a flat disk file.
    Https(HttpsSource),
    /// An export stream; fulls only.
    Nfc(NfcSource),
    /// A disk that the repository must have whole already: it opens without I/O, and a session that
    /// would have to read a block of it fails, as a lost connection does (retryable), naming disk
    /// and block.
    Durable {
        /// Name of the disk for a person, kept in the point.
        label: String,
        /// Its bytes.
        size_bytes: u64,
    },
}

/// What is wrong with a source specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("source {source_name}: {what}")]
pub struct SourceSpecError {
    /// The source as [`SourceSpec::label`] names it, or the text that was given.
    pub source_name: String,
    /// What is wrong, and what is expected.
    pub what: String,
}

impl SourceSpec {
    /// A file or device whose content says what it is.
    pub fn path(path: impl Into<PathBuf>) -> SourceSpec {
        SourceSpec::Path { path: path.into(), format: SourceFormat::Auto }
    }

    /// What a person typed as a source: an NBD address, or else a path.
    ///
    /// # Errors
    /// It begins as an NBD address and is none.
    pub fn parse(text: &str) -> Result<SourceSpec, SourceSpecError> {
        match nbd_uri::parse(text) {
            Some(source) => source.map(SourceSpec::Nbd),
            None => Ok(SourceSpec::path(text)),
        }
    }

    /// Names the disk for a person. Shows no secret.
    pub fn label(&self) -> String {
        match self {
            SourceSpec::Path { path, .. } => path.display().to_string(),
            SourceSpec::DeviceByUuid { uuid, .. } => format!("disk {uuid}"),
            SourceSpec::Nbd(source) => source.label(),
            SourceSpec::Https(HttpsSource { host, port, path_and_query, .. }) => {
                format!("https://{host}:{port}{}", without_query(path_and_query))
            }
            SourceSpec::Nfc(NfcSource { host, port, path_and_query, .. }) => {
                format!("nfc from {host}:{port}{}", without_query(path_and_query))
            }
            SourceSpec::Durable { label, .. } => label.clone(),
        }
    }

    /// Checks every length and number against its bound.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn check(&self) -> Result<(), SourceSpecError> {
        let wrong = |what: String| SourceSpecError { source_name: self.label(), what };
        match self {
            SourceSpec::Path { path, .. } => check_path(path).map_err(wrong),
            SourceSpec::DeviceByUuid { uuid, folder } => {
                let digits = uuid_digits(uuid).ok_or_else(|| {
                    wrong("a disk's UUID has 32 hexadecimal digits, with or without dashes".into())
                });
                digits?;
                folder.as_deref().map_or(Ok(()), check_path).map_err(wrong)
            }
            SourceSpec::Nbd(source) => source.check().map_err(wrong),
            SourceSpec::Https(source) => {
                check_host(&source.host).map_err(wrong)?;
                check_resource(&source.path_and_query, source.size_bytes).map_err(wrong)?;
                if source.connections > limits::SOURCE_CONNECTIONS_MAX
                    || source.in_flight > limits::SOURCE_IN_FLIGHT_MAX
                {
                    return Err(wrong("too many connections or requests in flight".into()));
                }
                Ok(())
            }
            SourceSpec::Nfc(source) => {
                check_host(&source.host).map_err(wrong)?;
                check_resource(&source.path_and_query, source.size_bytes).map_err(wrong)
            }
            SourceSpec::Durable { label, size_bytes } => {
                if label.len() > limits::NAME_BYTES_MAX || label.chars().any(char::is_control) {
                    return Err(wrong("its name is none of a disk".into()));
                }
                check_size(*size_bytes).map_err(wrong)
            }
        }
    }
}

impl NbdSource {
    /// Names the export as an address.
    pub fn label(&self) -> String {
        let s = if self.tls.is_some() { "s" } else { "" };
        match &self.address {
            NbdAddress::Tcp { host, port } if host.contains(':') => {
                format!("nbd{s}://[{host}]:{port}/{}", self.export)
            }
            NbdAddress::Tcp { host, port } => format!("nbd{s}://{host}:{port}/{}", self.export),
            NbdAddress::Unix { path } => {
                format!("nbd{s}+unix:///{}?socket={}", self.export, path.display())
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        match &self.address {
            NbdAddress::Tcp { host, .. } => check_host(host)?,
            NbdAddress::Unix { path } => check_path(path)?,
        }
        if self.export.len() > limits::NBD_NAME_BYTES_MAX {
            return Err(format!(
                "the name of an export has at most {} bytes",
                limits::NBD_NAME_BYTES_MAX
            ));
        }
        if self.connections > limits::SOURCE_CONNECTIONS_MAX {
            return Err(format!("at most {} connections", limits::SOURCE_CONNECTIONS_MAX));
        }
        let Some(tls) = &self.tls else { return Ok(()) };
        if tls.ca_file.is_some() == tls.thumbprint.is_some() {
            return Err("TLS needs either a CA file or a thumbprint to know the server by".into());
        }
        if tls.client_certificate.is_some() != tls.client_key.is_some() {
            return Err("a client certificate and its key go together".into());
        }
        Ok(())
    }
}

/// The 32 hexadecimal digits of a UUID in lower case, however it is written; nothing if it is none.
pub fn uuid_digits(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let is_uuid = digits.len() == 32 && digits.chars().all(|c| c.is_ascii_hexdigit());
    is_uuid.then(|| digits.to_ascii_lowercase())
}

fn without_query(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

fn check_path(path: &Path) -> Result<(), String> {
    match path.as_os_str().len() {
        0 => Err("the path is empty".into()),
        len if len > limits::PATH_BYTES_MAX => Err("the path is too long".into()),
        _ => Ok(()),
    }
}

fn check_host(host: &str) -> Result<(), String> {
    let is_host = !host.is_empty()
        && host.len() <= 255
        && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c));
    is_host.then_some(()).ok_or_else(|| format!("'{host}' is no host name or address"))
}

fn check_resource(path_and_query: &str, size_bytes: u64) -> Result<(), String> {
    let is_path = path_and_query.starts_with('/')
        && path_and_query.len() <= limits::PATH_BYTES_MAX
        && path_and_query.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path {
        return Err("path and query begin with '/' and are percent-encoded".into());
    }
    check_size(size_bytes)
}

fn check_size(size_bytes: u64) -> Result<(), String> {
    match size_bytes {
        1..=limits::DISK_BYTES_MAX => Ok(()),
        _ => Err(format!("a disk of {size_bytes} bytes is none that Gantry takes")),
    }
}

#[cfg(test)]
mod tests;
