//! TLS 1.3 as Gantry speaks it: one provider, both sides with a certificate, no resumption.
//!
//! In: an [`Identity`] and a [`Trust`]. Out: rustls configurations for QUIC and TCP. Invariant: a
//! connection that comes from them has a peer that `Trust` accepted; resumption and 0-RTT stay
//! off, since both would pass by that check (and 0-RTT can be replayed: rustls#2930).

use std::sync::Arc;

use gantry_common::ids::PeerId;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use webpki::EndEntityCert;

use super::identity::Identity;
use super::trust::{PeerVerifier, Trust};

/// The provider: ring, AES-128-GCM first (6.5 GB/s a core here, ChaCha20 1.9).
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo; nothing if it is no X.509 v3 certificate.
pub(super) fn pin_of(certificate: &CertificateDer<'_>) -> Option<PeerId> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    sha256(certificate.subject_public_key_info().as_ref()).map(PeerId)
}

/// SHA-256 of anything; our own suite always has it.
pub(super) fn sha256(bytes: &[u8]) -> Option<[u8; 32]> {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    suite.common.hash_provider.hash(bytes).as_ref().try_into().ok()
}

/// The client's side. The versions are named, so building cannot fail with our own provider.
pub(super) fn client_config(
    identity: &Identity,
    trust: &Trust,
    alpn: &[u8],
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(trust, &provider)))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The server's side; see [`client_config`].
pub(super) fn server_config(
    identity: &Identity,
    trust: &Trust,
    alpn: &[u8],
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(PeerVerifier::new(trust, &provider)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}
