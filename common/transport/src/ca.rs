//! The internal certificate authority: gantryd's, which signs the movers' certificates.
//!
//! In: names and validity. Out: identities that [`super::Trust`] accepts through the CA. Must not:
//! sign another authority, or show the key.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

use super::identity::{Identity, leaf_params};
use super::secret_file::{CredentialError, read_secret, write_secret};

/// The subject of every Gantry authority. They are told apart by their keys, so that a loaded
/// authority needs no parsing of its own certificate.
const SUBJECT: &str = "Gantry internal CA";
/// Clocks of peers may be behind by this much when a certificate is new.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

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
        let begin = self.pem.find("-----BEGIN CERTIFICATE-----").unwrap_or(self.pem.len());
        &self.pem[begin..]
    }

    /// A new identity under this authority, valid from now for `valid_for`. `name` (a host name or
    /// an address) can be demanded by [`super::Trust::expect_name`].
    ///
    /// # Errors
    /// [`CredentialError::Make`].
    pub fn issue(&self, name: &str, valid_for: Duration) -> Result<Identity, CredentialError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.issue_between(name, now.saturating_sub(CLOCK_SLACK), now + valid_for)
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
        let make = |error: rcgen::Error| CredentialError::make("certificate", error);
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let mut params = leaf_params(name);
        params.not_before = epoch + not_before;
        params.not_after = epoch + not_after;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?;
        let pem = format!("{}{}", key.serialize_pem(), certificate.pem());
        Identity::from_pem(Path::new("(new)"), &pem)
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, SUBJECT);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
