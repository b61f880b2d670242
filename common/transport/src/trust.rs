//! Whom a mover talks to: pins, and an authority whose certificates are accepted.
//!
//! In: a `--peer FILE` (lines of `PIN [name]`, `# comments`, PEM certificates). Out: a [`Trust`]
//! and the verifier of both sides of TLS. Invariant: nobody passes without proving a key that is
//! pinned or signed by the authority; an empty trust trusts nobody.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_common::ids::PeerId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::identity::Identity;
use super::secret_file::{CredentialError, read_public};
use super::tls::{self, pin_of};

/// Beyond any certificate: the year 9999.
const FAR_FUTURE: Duration = Duration::from_secs(253_402_300_000);

/// The peers that are allowed. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Trust {
    pins: Arc<BTreeSet<PeerId>>,
    revoked: Arc<BTreeSet<PeerId>>,
    authorities: Arc<[TrustAnchor<'static>]>,
    expected_name: Option<ServerName<'static>>,
    source: PathBuf,
}

impl Trust {
    /// Trusts the holders of these keys.
    pub fn of_pins(pins: impl IntoIterator<Item = PeerId>) -> Trust {
        Trust {
            pins: Arc::new(pins.into_iter().collect()),
            revoked: Arc::default(),
            authorities: Arc::new([]),
            expected_name: None,
            source: "the list of pins".into(),
        }
    }

    /// Reads a `--peer` file.
    ///
    /// # Errors
    /// An I/O error, a line that is no pin, a certificate that cannot be read, or nobody in it.
    pub fn load(path: &Path) -> Result<Trust, CredentialError> {
        Trust::parse(path, &read_public(path)?)
    }

    /// Parses what a `--peer` file holds; `path` is named in errors. A certificate of an authority
    /// stands for whomever it signed, any other certificate for its own pin.
    ///
    /// # Errors
    /// As [`Trust::load`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Trust, CredentialError> {
        let content = |what: String| CredentialError::content(path, what);
        let text = std::str::from_utf8(bytes).map_err(|_| content("is no text".into()))?;
        let mut pins = pins_of_lines(path, text)?;
        let mut authorities = Vec::new();
        for (index, certificate) in CertificateDer::pem_slice_iter(bytes).enumerate() {
            let number = index + 1;
            let unreadable = || content(format!("certificate {number} cannot be read"));
            let certificate = certificate.map_err(|_| unreadable())?;
            let pin = pin_of(&certificate).ok_or_else(unreadable)?;
            if is_authority(&certificate) {
                let anchor = anchor_from_trusted_cert(&certificate).map_err(|_| unreadable())?;
                authorities.push(anchor.to_owned());
            } else {
                pins.insert(pin);
            }
        }
        if pins.is_empty() && authorities.is_empty() {
            return Err(content("names no peer: it needs a pin or a certificate".into()));
        }
        Ok(Trust {
            pins: Arc::new(pins),
            revoked: Arc::default(),
            authorities: authorities.into(),
            expected_name: None,
            source: path.to_owned(),
        })
    }

    /// Whether this very key is named (a certificate of an authority is not enough).
    pub fn names(&self, pin: PeerId) -> bool {
        self.pins.contains(&pin)
    }

    /// Lets in nobody with one of these keys, whoever signed for it.
    pub fn without(mut self, revoked: impl IntoIterator<Item = PeerId>) -> Trust {
        self.revoked = Arc::new(revoked.into_iter().collect());
        self
    }

    /// Demands that a certificate of an authority is for this host name or address. Pins already
    /// name one key, so they are not affected.
    ///
    /// # Errors
    /// `name` is neither.
    pub fn expect_name(mut self, name: &str) -> Result<Trust, CredentialError> {
        let parsed = ServerName::try_from(name.to_owned()).map_err(|_| {
            CredentialError::content(&self.source, format!("'{name}' is no host name or address"))
        })?;
        self.expected_name = Some(parsed);
        Ok(self)
    }

    /// Whether this identity would be let in at `now_ms` (since 1970) by who has this trust: what an
    /// answer to an enrolment must bear.
    ///
    /// # Errors
    /// Why not.
    pub fn accepts(&self, identity: &Identity, now_ms: u64) -> Result<(), CredentialError> {
        let fail = |error: CertificateError| {
            CredentialError::content(&self.source, rustls::Error::from(error).to_string())
        };
        self.check_at(identity, Duration::from_millis(now_ms)).map_err(fail)
    }

    /// From when to when (since 1970) the certificate of this identity holds; nothing if it is pinned or
    /// refused for another reason.
    pub fn validity(&self, identity: &Identity) -> Option<(Duration, Duration)> {
        // The verifier tells the dates when it is asked for a time outside them.
        let begin = match self.check_at(identity, Duration::ZERO) {
            Err(CertificateError::NotValidYetContext { not_before, .. }) => not_before,
            _ => return None,
        };
        match self.check_at(identity, FAR_FUTURE) {
            Err(CertificateError::ExpiredContext { not_after, .. }) => {
                let since = |time: UnixTime| Duration::from_secs(time.as_secs());
                Some((since(begin), since(not_after)))
            }
            _ => None,
        }
    }

    fn check_at(&self, identity: &Identity, since_1970: Duration) -> Result<(), CertificateError> {
        let algorithms = tls::provider().signature_verification_algorithms;
        let (own, rest) =
            identity.certified.cert.split_first().ok_or(CertificateError::BadEncoding)?;
        let now = UnixTime::since_unix_epoch(since_1970);
        self.check(own, rest, now, &algorithms, KeyUsage::client_auth())
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
        usage: KeyUsage,
    ) -> Result<(), CertificateError> {
        let pin = pin_of(certificate).ok_or(CertificateError::BadEncoding)?;
        if self.revoked.contains(&pin) {
            return Err(CertificateError::Revoked);
        }
        if self.pins.contains(&pin) {
            return Ok(());
        }
        let refuse = |why: String| {
            let text = format!("the peer's certificate (pin {pin}) {why}");
            CertificateError::Other(OtherError(Arc::new(RefusedPeer(text))))
        };
        let unknown = || refuse(format!("is not among those allowed in {}", self.source.display()));
        if self.authorities.is_empty() {
            return Err(unknown());
        }
        let leaf =
            EndEntityCert::try_from(certificate).map_err(|_| CertificateError::BadEncoding)?;
        leaf.verify_for_usage(
            algorithms.all,
            &self.authorities,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(|error| match error {
            webpki::Error::CertExpired { time, not_after } => {
                CertificateError::ExpiredContext { time, not_after }
            }
            webpki::Error::CertNotValidYet { time, not_before } => {
                CertificateError::NotValidYetContext { time, not_before }
            }
            webpki::Error::UnknownIssuer
            | webpki::Error::InvalidSignatureForPublicKey
            | webpki::Error::CaUsedAsEndEntity => unknown(),
            other => refuse(format!("is refused: {other}")),
        })?;
        match &self.expected_name {
            Some(name) => leaf
                .verify_is_valid_for_subject_name(name)
                .map_err(|_| refuse(format!("is not for '{}'", name.to_str()))),
            None => Ok(()),
        }
    }
}

/// Pins are the lines outside of PEM blocks; what follows a pin on its line is a name for people.
fn pins_of_lines(path: &Path, text: &str) -> Result<BTreeSet<PeerId>, CredentialError> {
    let mut pins = BTreeSet::new();
    let mut in_pem = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("-----BEGIN ") {
            in_pem = true;
        }
        let is_pin = !in_pem && !line.is_empty() && !line.starts_with('#');
        if line.starts_with("-----END ") {
            in_pem = false;
        }
        if !is_pin {
            continue;
        }
        let word = line.split_whitespace().next().unwrap_or_default();
        let pin = word.parse::<PeerId>().map_err(|error| {
            CredentialError::content(path, format!("line {}: {error}", index + 1))
        })?;
        pins.insert(pin);
    }
    Ok(pins)
}

/// Whether a certificate says that it is an authority: BasicConstraints with `cA TRUE`, which DER
/// encodes in one way only (RFC 5280 §4.2.1.9). The file is its owner's word, so looking for the
/// bytes is enough.
fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    const OID: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x13];
    const TRUE: [u8; 3] = [0x01, 0x01, 0xff];
    certificate.windows(OID.len()).enumerate().any(|(at, window)| {
        let rest = certificate.get(at + OID.len()..).unwrap_or_default();
        let value = rest.strip_prefix(&TRUE[..]).unwrap_or(rest);
        window == OID && matches!(value, [0x04, _, 0x30, _, flag @ ..] if flag.starts_with(&TRUE))
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RefusedPeer(String);

/// The check of the peer's certificate, on either side of TLS. Both sides must have one.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    pub(super) fn new(trust: &Trust, provider: &CryptoProvider) -> PeerVerifier {
        let algorithms = provider.signature_verification_algorithms;
        PeerVerifier { trust: trust.clone(), algorithms }
    }
}

/// TLS 1.2 is not offered; if it were reached all the same, nothing passes.
fn refuse_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usage = KeyUsage::server_auth();
        self.trust.check(certificate, intermediates, now, &self.algorithms, usage)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let usage = KeyUsage::client_auth();
        self.trust.check(certificate, intermediates, now, &self.algorithms, usage)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use webpki::KeyUsage;

    use super::Trust;
    use crate::ca::CertificateAuthority;
    use crate::identity::Identity;
    use crate::tls;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn check(trust: &Trust, peer: &Identity) -> Result<(), String> {
        let algorithms = tls::provider().signature_verification_algorithms;
        let now = rustls::pki_types::UnixTime::now();
        let certificate = &peer.certified.cert[0];
        [KeyUsage::server_auth(), KeyUsage::client_auth()].into_iter().try_for_each(|usage| {
            trust
                .check(certificate, &[], now, &algorithms, usage)
                .map_err(|error| rustls::Error::from(error).to_string())
        })
    }

    fn parse(text: &str) -> Result<Trust, String> {
        Trust::parse(Path::new("peers"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn pins_certificates_and_authorities_stand_in_one_file() {
        let names = ["a", "b", "c"].map(|name| Identity::generate(name).unwrap());
        let [pinned, carded, stranger] = &names;
        let ca = CertificateAuthority::generate().unwrap();
        let signed = ca.issue("proxy-1", YEAR).unwrap();
        let file = format!(
            "# our movers\n\n{}  target one\r\n{}{}",
            pinned.pin(),
            carded.certificates_pem(),
            ca.certificate_pem()
        );
        let trust = parse(&file).unwrap();
        for peer in [pinned, carded, &signed] {
            check(&trust, peer).unwrap();
        }
        let text = check(&trust, stranger).unwrap_err();
        assert!(text.contains("is not among those allowed in peers"), "{text}");
        assert!(text.contains(&stranger.pin().to_string()), "{text}");
    }

    #[test]
    fn other_authorities_expired_and_future_certificates_are_refused() {
        let ca = CertificateAuthority::generate().unwrap();
        let trust = parse(ca.certificate_pem()).unwrap();
        let other = CertificateAuthority::generate().unwrap().issue("proxy-1", YEAR).unwrap();
        assert!(check(&trust, &other).unwrap_err().contains("not among those allowed"));
        let hour = Duration::from_secs(3600);
        let expired = ca.issue_between("proxy-1", hour, hour * 2).unwrap();
        assert!(check(&trust, &expired).unwrap_err().contains("expired"));
        let future = ca.issue_between("proxy-1", YEAR * 100, YEAR * 101).unwrap();
        assert!(check(&trust, &future).unwrap_err().contains("not valid yet"));
        check(&Trust::of_pins([expired.pin()]), &expired).unwrap();
    }

    #[test]
    fn an_expected_name_binds_certificates_of_an_authority() {
        let ca = CertificateAuthority::generate().unwrap();
        let trust = parse(ca.certificate_pem()).unwrap().expect_name("proxy-1").unwrap();
        check(&trust, &ca.issue("proxy-1", YEAR).unwrap()).unwrap();
        let text = check(&trust, &ca.issue("proxy-2", YEAR).unwrap()).unwrap_err();
        assert!(text.contains("is not for 'proxy-1'"), "{text}");
        assert!(parse(ca.certificate_pem()).unwrap().expect_name("no name").is_err());
    }

    #[test]
    fn an_authority_survives_its_file_and_a_signed_mover_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let ca = CertificateAuthority::generate().unwrap();
        ca.save(&path).unwrap();
        let trust = parse(ca.certificate_pem()).unwrap();
        let again = CertificateAuthority::load(&path).unwrap();
        let signed = again.issue("proxy-1", YEAR).unwrap();
        check(&trust, &signed).unwrap();
        // A mover's certificate in the file is its pin, not a licence to sign others.
        let trust = parse(&signed.certificates_pem()).unwrap();
        check(&trust, &signed).unwrap();
        assert!(check(&trust, &again.issue("proxy-1", YEAR).unwrap()).is_err());
    }

    #[test]
    fn files_that_name_nobody_or_rubbish_are_refused() {
        assert!(parse("").unwrap_err().contains("names no peer"));
        assert!(parse("# nobody\n").is_err());
        assert!(parse("\nabcd proxy\n").unwrap_err().contains("line 2"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(parse(broken).unwrap_err().contains("certificate 1"));
    }

    #[test]
    fn a_certificate_tells_from_when_to_when_it_holds() {
        let ca = CertificateAuthority::generate().unwrap();
        let trust = parse(ca.certificate_pem()).unwrap();
        let [begin, end] = [1_000_000_000, 2_000_000_000].map(Duration::from_secs);
        let mover = ca.issue_between("proxy-1", begin, end).unwrap();
        assert_eq!(trust.validity(&mover), Some((begin, end)));
        assert!(trust.accepts(&mover, 1_500_000_000_000).is_ok());
        assert!(trust.accepts(&mover, 2_500_000_000_000).is_err());
    }
}
