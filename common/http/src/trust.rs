//! Which server certificate is the right one: a pinned thumbprint, or a certificate authority.
//!
//! In: what an administrator configured. Out: a rustls configuration. Invariant: whatever the kind
//! of trust, the handshake's signature is verified, so that whoever shows a certificate also has
//! its key. A certificate that does not fit gives an error with its thumbprint, so that an
//! administrator can compare it with the server's own and pin it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore};
use rustls::{ConfigBuilder, Error, SignatureScheme};

/// SHA-256 of a certificate's DER, as vCenter and browsers show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thumbprint(pub [u8; 32]);

/// A text that is no SHA-256 thumbprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no SHA-256 thumbprint: expected 64 hexadecimal digits, with or without colons \
     between the bytes (a SHA-1 thumbprint of 40 digits is not accepted)"
)]
pub struct ThumbprintParseError(String);

impl Thumbprint {
    /// Of the first certificate in a PEM text; nothing if there is none.
    pub fn of_pem(pem: &[u8]) -> Option<Thumbprint> {
        thumbprint_of(&CertificateDer::from_pem_slice(pem).ok()?)
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Thumbprint({self})")
    }
}

impl FromStr for Thumbprint {
    type Err = ThumbprintParseError;

    fn from_str(text: &str) -> Result<Thumbprint, ThumbprintParseError> {
        let error = || ThumbprintParseError(text.chars().take(120).collect());
        let pairs: Vec<&str> = if text.contains(':') {
            text.split(':').collect()
        } else if text.is_ascii() {
            (0..text.len() / 2).map(|at| &text[at * 2..at * 2 + 2]).collect()
        } else {
            return Err(error());
        };
        let digits = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
        let whole = text.len() == 64 || text.len() == 95;
        if !whole || pairs.len() != 32 || !pairs.iter().all(|pair| digits(pair)) {
            return Err(error());
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Thumbprint(out))
    }
}

/// How a server's certificate is checked.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The server shows exactly the certificate with this SHA-256 thumbprint, whatever its names,
    /// issuer and dates.
    Sha256Thumbprint(Thumbprint),
    /// The server's certificate is signed by one of these authorities (PEM), valid today, and
    /// names the endpoint's host.
    CaPem(Vec<u8>),
    /// The server shows the certificate of the authority with this thumbprint behind its own, which
    /// that authority signed for `name`, valid today. For a first contact, when only the thumbprint
    /// could be handed over.
    AuthorityThumbprint {
        /// Of the authority's certificate.
        thumbprint: Thumbprint,
        /// Host name or address in the server's certificate, whatever name it was reached by.
        name: String,
    },
}

/// Why a certificate was not accepted, with what an administrator needs to pin it.
#[derive(Debug)]
pub(crate) struct Untrusted {
    pub(crate) presented: Thumbprint,
    pub(crate) reason: String,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SHA-256 thumbprint {})", self.reason, self.presented)
    }
}

impl std::error::Error for Untrusted {}

#[derive(Debug)]
enum Rule {
    Thumbprint(Thumbprint),
    Authority(Arc<WebPkiServerVerifier>),
    Shown { authority: Thumbprint, name: ServerName<'static> },
}

#[derive(Debug)]
struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
}

fn thumbprint_of(certificate: &CertificateDer<'_>) -> Option<Thumbprint> {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    let digest = suite.common.hash_provider.hash(certificate);
    digest.as_ref().try_into().ok().map(Thumbprint)
}

fn untrusted(presented: Thumbprint, reason: impl Into<String>) -> Error {
    let untrusted = Untrusted { presented, reason: reason.into() };
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(untrusted))))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = thumbprint_of(end_entity)
            .ok_or_else(|| Error::General("SHA-256 is not available".into()))?;
        match &self.rule {
            Rule::Thumbprint(expected) if *expected == presented => {
                Ok(ServerCertVerified::assertion())
            }
            Rule::Thumbprint(expected) => {
                Err(untrusted(presented, format!("it is not the pinned certificate {expected}")))
            }
            Rule::Authority(authority) => authority
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                .map_err(|error| untrusted(presented, error.to_string())),
            Rule::Shown { authority, name } => {
                let shown = intermediates.iter().find(|c| thumbprint_of(c) == Some(*authority));
                let Some(shown) = shown else {
                    let text = format!("no certificate behind it is the authority {authority}");
                    return Err(untrusted(presented, text));
                };
                authority_verifier([Ok(shown.clone())], &self.provider)
                    .map_err(|text| untrusted(presented, text))?
                    .verify_server_cert(end_entity, &[], name, ocsp_response, now)
                    .map_err(|error| untrusted(presented, error.to_string()))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn authority_verifier<'a>(
    certificates: impl IntoIterator<Item = Result<CertificateDer<'a>, String>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate?.into_owned()).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("the PEM text holds no certificate".into());
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| error.to_string())
}

impl Trust {
    /// The TLS configuration: TLS 1.2 (ESXi up to 8.0 speaks nothing newer by default) and 1.3.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, String> {
        let mut config = self.config_builder()?.with_no_client_auth();
        // A resumed session would not show its certificate again.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// As this side of any TLS connection needs it, HTTP or not: the server is checked, and what
    /// this side shows of itself is still open.
    ///
    /// # Errors
    /// The authority's PEM text cannot be read; the text says why.
    pub fn config_builder(&self) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
        let provider = Arc::new(ring::default_provider());
        let rule = match self {
            Trust::Sha256Thumbprint(thumbprint) => Rule::Thumbprint(*thumbprint),
            Trust::CaPem(pem) => {
                let certificates = CertificateDer::pem_slice_iter(pem);
                let certificates = certificates.map(|one| one.map_err(|error| error.to_string()));
                Rule::Authority(authority_verifier(certificates, &provider)?)
            }
            Trust::AuthorityThumbprint { thumbprint, name } => {
                let name = ServerName::try_from(name.clone()).map_err(|error| error.to_string())?;
                Rule::Shown { authority: *thumbprint, name }
            }
        };
        let verifier = Arc::new(Verifier { rule, provider: provider.clone() });
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier))
    }
}

#[cfg(test)]
mod tests {
    use super::{Thumbprint, Trust};

    #[test]
    fn thumbprints_parse_with_and_without_colons() {
        let thumbprint = Thumbprint([0xab; 32]);
        let text = thumbprint.to_string();
        assert_eq!(text.len(), 95);
        assert_eq!(text.parse(), Ok(thumbprint));
        assert_eq!(text.replace(':', "").to_lowercase().parse(), Ok(thumbprint));
        let sha1 = "AB:".repeat(19) + "AB";
        let signs = "+1".repeat(32);
        let wide = "é".repeat(32);
        let shifted = format!("A:{}", &text[2..]);
        for bad in ["", "AB", &sha1, &signs, &wide, &shifted, &text[..94], &format!("{text}:")] {
            assert!(bad.parse::<Thumbprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pem_without_certificates_is_refused() {
        for bad in ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            assert!(Trust::CaPem(bad.into()).client_config().is_err(), "{bad}");
        }
    }
}
