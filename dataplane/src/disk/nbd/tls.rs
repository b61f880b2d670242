//! TLS of an NBD connection.
//!
//! In: whom to trust and who this side is. Out: a connector. Invariant: a server is accepted only
//! for a certificate that the named authorities signed for its name, or for the very certificate
//! whose thumbprint was given. Must not: fall back to the system's authorities.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use gantry_common::source::{NbdAddress, NbdSource, NbdTls};
use gantry_http::{ThumbprintParseError, Trust};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder};
use tokio_rustls::TlsConnector;

use super::error::NbdError;
use crate::transport::read_secret;

/// What begins TLS with one server.
#[derive(Clone)]
pub(super) struct Tls {
    pub connector: TlsConnector,
    pub name: ServerName<'static>,
}

impl Tls {
    /// As a source asks for it; nothing if it does not.
    pub(super) fn of(source: &NbdSource) -> Result<Option<Tls>, NbdError> {
        let Some(tls) = &source.tls else { return Ok(None) };
        let host = match &source.address {
            NbdAddress::Tcp { host, .. } => host,
            NbdAddress::Unix { .. } => "localhost",
        };
        let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name.clone())
            .map_err(|_| NbdError::Credentials(format!("'{name}' is no name of a server")))?;
        let trust = trust(tls)?;
        let builder = trust.config_builder().map_err(NbdError::Credentials)?;
        let mut config = client_side(builder, tls)?;
        // A resumed session would not show its certificate again.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Some(Tls { connector: TlsConnector::from(Arc::new(config)), name }))
    }
}

fn trust(tls: &NbdTls) -> Result<Trust, NbdError> {
    let credentials = |what: String| NbdError::Credentials(what);
    match (&tls.ca_file, &tls.thumbprint) {
        (Some(file), _) => {
            let bytes = fs::read(file);
            let bytes = bytes.map_err(|e| credentials(format!("{}: {e}", file.display())))?;
            Ok(Trust::CaPem(bytes))
        }
        (None, Some(text)) => {
            let thumbprint =
                text.parse().map_err(|e: ThumbprintParseError| credentials(e.to_string()))?;
            Ok(Trust::Sha256Thumbprint(thumbprint))
        }
        (None, None) => Err(credentials("neither CA nor thumbprint is given".into())),
    }
}

fn client_side(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    tls: &NbdTls,
) -> Result<ClientConfig, NbdError> {
    let (Some(certificate), Some(key)) = (&tls.client_certificate, &tls.client_key) else {
        return Ok(builder.with_no_client_auth());
    };
    // libnbd's folders of certificates need not have the client's.
    if !certificate.exists() && !key.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let wrong = |what: String| NbdError::Credentials(format!("{}: {what}", key.display()));
    let bytes = read_secret(key).map_err(|error| NbdError::Credentials(error.to_string()))?;
    let key_der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| wrong("no PEM key".into()))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, key_der)
        .map_err(|error| wrong(error.to_string()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
    let wrong = |what: String| NbdError::Credentials(format!("{}: {what}", file.display()));
    let bytes = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err(wrong("it holds no PEM certificate".into())),
    }
}
