//! The internal certificate authority: gantryd's, which signs the movers' certificates.
//!
//! In: names and validity, or a mover's request. Out: identities and certificates that
//! [`super::Trust`] accepts through the CA. Invariant: of a request only its key counts; what a
//! certificate says is the authority's own word. Must not: sign another authority, or show the key.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_common::ids::PeerId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKey, PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::identity::{CERTIFICATE_BEGIN, Identity, leaf_params};
use super::secret_file::{CredentialError, read_secret, write_secret};
use super::tls::sha256;

/// The subject of every Gantry authority. They are told apart by their keys, so that a loaded
/// authority needs no parsing of its own certificate.
const SUBJECT: &str = "Gantry internal CA";
/// Clocks of peers may be behind by this much when a certificate is new.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// Bytes of a request that are looked at.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Bytes of an uncompressed point of P-256 (SEC 1 §2.3.3).
const P256_POINT_BYTES: usize = 65;

/// What a mover asks to be signed, with its signature checked: who sent it holds the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    key: PublicKey,
    pin: PeerId,
}

impl CertificateRequest {
    /// Parses PEM of a PKCS #10 request. Only its key is kept.
    ///
    /// # Errors
    /// It is none, its signature is wrong, or its key is not of ECDSA P-256.
    pub fn parse(pem: &str) -> Result<CertificateRequest, CredentialError> {
        let refuse = |what: &str| CredentialError::content(Path::new("certificate request"), what);
        if pem.len() > REQUEST_BYTES_MAX {
            return Err(refuse("is too long"));
        }
        let parsed = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| refuse(&format!("cannot be read: {error}")))?;
        let key = parsed.public_key;
        // The signature's algorithm is taken for the key's, so the key's length is looked at too.
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_BYTES {
            return Err(refuse("needs a key of ECDSA P-256"));
        }
        let digest = sha256(&key.subject_public_key_info());
        let pin = PeerId(digest.ok_or_else(|| refuse("cannot be hashed"))?);
        Ok(CertificateRequest { key, pin })
    }

    /// The pin of who asks.
    pub fn pin(&self) -> PeerId {
        self.pin
    }
}

/// Key and certificate of an authority.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateAuthority(..)")
    }
}

impl CertificateAuthority {
    /// Draws a key and signs the authority's own certificate.
    ///
    /// # Errors
    /// [`CredentialError::Make`].
    pub fn generate() -> Result<CertificateAuthority, CredentialError> {
        let make = |error: rcgen::Error| CredentialError::make("certificate authority", error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let key_pem = key.serialize_pem();
        let own = CertifiedIssuer::self_signed(ca_params(), key).map_err(make)?;
        CertificateAuthority::from_pem(Path::new("(new)"), &format!("{key_pem}{}", own.pem()))
    }

    /// Reads the file that [`CertificateAuthority::save`] wrote.
    ///
    /// # Errors
    /// Others can read the file, or it holds no authority of Gantry's.
    pub fn load(path: &Path) -> Result<CertificateAuthority, CredentialError> {
        let bytes = read_secret(path)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| CredentialError::content(path, "is no PEM file"))?;
        CertificateAuthority::from_pem(path, &text)
    }

    /// Writes key and certificate to a new file of mode 0600.
    ///
    /// # Errors
    /// The file exists, or an I/O error.
    pub fn save(&self, path: &Path) -> Result<(), CredentialError> {
        write_secret(path, self.pem.as_bytes())
    }

    fn from_pem(path: &Path, pem: &str) -> Result<CertificateAuthority, CredentialError> {
        // Checks that key and certificate belong together.
        Identity::from_pem(path, pem)?;
        let key = KeyPair::from_pem(pem)
            .map_err(|error| CredentialError::content(path, format!("private key: {error}")))?;
        Ok(CertificateAuthority { issuer: Issuer::new(ca_params(), key), pem: pem.to_owned() })
    }

    /// The authority's certificate as PEM: what goes into a `--peer` file.
    pub fn certificate_pem(&self) -> &str {
        let begin = self.pem.find(CERTIFICATE_BEGIN).unwrap_or(self.pem.len());
        &self.pem[begin..]
    }

    /// SHA-256 of the authority's certificate (DER): what an enrolment token names it by.
    pub fn certificate_sha256(&self) -> [u8; 32] {
        let der = CertificateDer::from_pem_slice(self.certificate_pem().as_bytes());
        der.ok().and_then(|der| sha256(&der)).expect("its own certificate was read before")
    }

    /// A certificate (PEM) for the key of a request, valid from now for `valid_for`. Its subject is
    /// `name`, which may also be demanded of it.
    ///
    /// # Errors
    /// [`CredentialError::Make`].
    pub fn sign(
        &self,
        request: &CertificateRequest,
        name: &str,
        valid_for: Duration,
    ) -> Result<String, CredentialError> {
        let make = |error: rcgen::Error| CredentialError::make("certificate", error);
        let params = self.leaf(&[name], valid_for);
        Ok(params.signed_by(&request.key, &self.issuer).map_err(make)?.pem())
    }

    /// An identity of a server that is reached by all of these names and addresses. Its chain ends
    /// with the authority's certificate, so that a client that knows only
    /// [`CertificateAuthority::certificate_sha256`] can check it.
    ///
    /// # Errors
    /// [`CredentialError::Make`]; no names.
    pub fn issue_server(
        &self,
        names: &[&str],
        valid_for: Duration,
    ) -> Result<Identity, CredentialError> {
        if names.is_empty() {
            return Err(CredentialError::make("certificate", "it needs a name"));
        }
        self.issue_leaf(self.leaf(names, valid_for), self.certificate_pem())
    }

    /// A new identity under this authority, valid from now for `valid_for`. `name` (a host name or
    /// an address) can be demanded by [`super::Trust::expect_name`].
    ///
    /// # Errors
    /// [`CredentialError::Make`].
    pub fn issue(&self, name: &str, valid_for: Duration) -> Result<Identity, CredentialError> {
        self.issue_leaf(self.leaf(&[name], valid_for), "")
    }

    /// As [`CertificateAuthority::issue`], valid between two times since 1970.
    ///
    /// # Errors
    /// [`CredentialError::Make`].
    pub fn issue_between(
        &self,
        name: &str,
        not_before: Duration,
        not_after: Duration,
    ) -> Result<Identity, CredentialError> {
        self.issue_leaf(leaf_between(leaf_params(&[name]), not_before, not_after), "")
    }

    fn leaf(&self, names: &[&str], valid_for: Duration) -> CertificateParams {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        leaf_between(leaf_params(names), now.saturating_sub(CLOCK_SLACK), now + valid_for)
    }

    /// `chain` (PEM) follows the new certificate.
    fn issue_leaf(
        &self,
        params: CertificateParams,
        chain: &str,
    ) -> Result<Identity, CredentialError> {
        let make = |error: rcgen::Error| CredentialError::make("certificate", error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?;
        let pem = format!("{}{}{chain}", key.serialize_pem(), certificate.pem());
        Identity::from_pem(Path::new("(new)"), &pem)
    }
}

fn leaf_between(
    mut params: CertificateParams,
    not_before: Duration,
    not_after: Duration,
) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + not_before;
    params.not_after = epoch + not_after;
    params.use_authority_key_identifier_extension = true;
    params
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, SUBJECT);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Trust;
    use rcgen::PKCS_ECDSA_P384_SHA384;

    #[test]
    fn a_request_is_signed_for_its_key_and_for_what_the_authority_says() {
        let ca = CertificateAuthority::generate().unwrap();
        let (request, key) = Identity::request("gantryd").unwrap();
        let request = CertificateRequest::parse(&request).unwrap();
        let signed = ca.sign(&request, "proxy-1", Duration::from_secs(60)).unwrap();
        let mover = key.certified(Path::new("signed"), &signed).unwrap();
        assert_eq!(request.pin(), mover.pin());
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let holds = |text: &str| der.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("proxy-1") && !holds("gantryd"));
        // The certificate is for the mover's key alone.
        let (_, other) = Identity::request("other").unwrap();
        assert!(other.certified(Path::new("signed"), &signed).is_err());
    }

    #[test]
    fn a_request_that_asks_for_more_gets_no_more_and_a_spoilt_one_no_other_key() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let authority = ca_params().serialize_request(&key).unwrap().pem().unwrap();
        let request = CertificateRequest::parse(&authority).unwrap();
        let ca = CertificateAuthority::generate().unwrap();
        let signed = ca.sign(&request, "m", Duration::from_secs(60)).unwrap();
        let constraint = [0x06, 0x03, 0x55, 0x1d, 0x13];
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let at = der.windows(5).position(|window| window == constraint);
        assert!(at.is_none_or(|at| !der[at..at + 14].windows(3).any(|flag| flag == [1, 1, 0xff])));

        let strong = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let strong = leaf_params(&["m"]).serialize_request(&strong).unwrap().pem().unwrap();
        let refused = CertificateRequest::parse(&strong).unwrap_err().to_string();
        assert!(refused.contains("P-256"), "{refused}");
        for bad in ["", "-----BEGIN CERTIFICATE REQUEST-----", &"x".repeat(1 << 20)] {
            assert!(CertificateRequest::parse(bad).is_err());
        }
        let lines: Vec<&str> = authority.lines().collect();
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut lines: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().into()).collect();
            let line = random.usize(1..lines.len() - 1);
            let at = random.usize(..lines[line].len());
            let new = *random.choice(b"ABCDwxyz0123+/=").unwrap();
            lines[line][at] = new;
            let text = lines.iter().map(|line| String::from_utf8_lossy(line) + "\n");
            // Some bits mean nothing; none of them is the key's.
            let spoilt = CertificateRequest::parse(&text.collect::<String>());
            assert!(spoilt.is_err() || spoilt.unwrap() == request, "seed {seed}");
        }
    }

    #[test]
    fn a_server_has_all_its_names_and_shows_its_authority() {
        let ca = CertificateAuthority::generate().unwrap();
        let day = Duration::from_secs(86_400);
        let server = ca.issue_server(&["backup.example", "127.0.0.1"], day).unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(server.to_pem().reveal().as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(sha256(&chain[1]), Some(ca.certificate_sha256()));
        let trust = Trust::parse(Path::new("ca"), ca.certificate_pem().as_bytes()).unwrap();
        for name in ["backup.example", "127.0.0.1"] {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
            trust.clone().expect_name(name).unwrap().accepts(&server, now).unwrap();
        }
        assert!(ca.issue_server(&[], day).is_err());
    }
}
