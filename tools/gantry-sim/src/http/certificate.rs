//! The certificate of an endpoint: self-signed, made at the start.
//!
//! In: nothing. Out: the TLS configuration and the thumbprints that clients pin.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use ring::digest::{self, Algorithm};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

/// A certificate that is ready to serve.
#[derive(Debug)]
pub struct Certificate {
    /// For the acceptor.
    pub config: Arc<ServerConfig>,
    /// SHA-1 of the certificate, `AA:BB:...`.
    pub thumbprint_sha1: String,
    /// SHA-256 of the certificate, `AA:BB:...`.
    pub thumbprint_sha256: String,
    /// The certificate itself.
    pub pem: String,
}

impl Certificate {
    /// Makes a new one for the loopback interface.
    ///
    /// # Errors
    /// When key or configuration cannot be made.
    pub fn make() -> Result<Self> {
        let key = KeyPair::generate().context("making a TLS key")?;
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).context("naming a certificate")?;
        let certificate = params.self_signed(&key).context("signing a certificate")?;
        let der = certificate.der().clone();
        let thumbprint_sha1 = thumbprint(&digest::SHA1_FOR_LEGACY_USE_ONLY, &der);
        let thumbprint_sha256 = thumbprint(&digest::SHA256, &der);
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![der], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let pem = certificate.pem();
        Ok(Self { config: Arc::new(config), thumbprint_sha1, thumbprint_sha256, pem })
    }
}

fn thumbprint(algorithm: &'static Algorithm, der: &[u8]) -> String {
    let digest = digest::digest(algorithm, der);
    let bytes: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    bytes.join(":")
}
