//! Who a mover is: a key and a certificate for it, in one PEM file of mode 0600.
//!
//! In: randomness and files. Out: an [`Identity`] for TLS, and its pin. Peers know each other by
//! the pin (SHA-256 of the public key), so a certificate may be renewed without telling anybody.
//! Must not: show the key.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use gantry_common::ids::PeerId;
use gantry_common::secret::Secret;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::durable_file;
use super::secret_file::{CredentialError, read_secret, write_secret};
use super::tls;

/// First line of a certificate in PEM.
pub(super) const CERTIFICATE_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// A mover's key and certificate. Cloning is cheap.
#[derive(Clone)]
pub struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    pem: Arc<str>,
    pin: PeerId,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(pin {})", self.pin)
    }
}

impl Identity {
    /// Draws an ECDSA P-256 key and signs a certificate for it with itself. `name` is for people:
    /// nothing is decided by it.
    ///
    /// # Errors
    /// [`CredentialError::Make`], if the system gives no randomness.
    pub fn generate(name: &str) -> Result<Identity, CredentialError> {
        let make = |error: rcgen::Error| CredentialError::make("mover identity", error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let certificate = leaf_params(&[name]).self_signed(&key).map_err(make)?;
        Identity::from_pem(
            Path::new("(new)"),
            &format!("{}{}", key.serialize_pem(), certificate.pem()),
        )
    }

    /// Reads the file that [`Identity::save`] wrote.
    ///
    /// # Errors
    /// Others can read the file, or it holds no matching key and certificate.
    pub fn load(path: &Path) -> Result<Identity, CredentialError> {
        let bytes = read_secret(path)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| CredentialError::content(path, "is no PEM file"))?;
        Identity::from_pem(path, &text)
    }

    /// Writes key and certificates to a new file of mode 0600.
    ///
    /// # Errors
    /// The file exists, or an I/O error.
    pub fn save(&self, path: &Path) -> Result<(), CredentialError> {
        write_secret(path, self.pem.as_bytes())
    }

    /// Parses one private key and one or more certificates, the mover's own first. `path` is named
    /// in errors.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn from_pem(path: &Path, pem: &str) -> Result<Identity, CredentialError> {
        let content = |what: &str| CredentialError::content(path, what);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| content("holds a certificate that cannot be read"))?;
        let own = chain.first().ok_or_else(|| content("holds no certificate"))?;
        let pin = tls::pin_of(own).ok_or_else(|| content("holds no X.509 certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| content("holds no private key"))?;
        let certified = CertifiedKey::from_der(chain, key, &tls::provider())
            .map_err(|error| content(&format!("key and certificate do not fit: {error}")))?;
        Ok(Identity { certified: Arc::new(certified), pem: pem.into(), pin })
    }

    /// Draws a key and asks for a certificate: what is to be signed (a PKCS #10 request as PEM), and
    /// what becomes an identity with the certificate.
    ///
    /// # Errors
    /// [`CredentialError::Make`].
    pub fn request(name: &str) -> Result<(String, NewKey), CredentialError> {
        let make = |error: rcgen::Error| CredentialError::make("mover identity", error);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        Ok((NewKey::sign_request(&key, name)?, NewKey { pem: key.serialize_pem() }))
    }

    /// As [`Identity::request`], for a new certificate of the same key.
    ///
    /// # Errors
    /// [`CredentialError::Make`].
    pub fn renewal_request(&self, name: &str) -> Result<(String, NewKey), CredentialError> {
        let key = KeyPair::from_pem(&self.pem)
            .map_err(|error| CredentialError::make("certificate request", error))?;
        Ok((NewKey::sign_request(&key, name)?, NewKey { pem: key.serialize_pem() }))
    }

    /// As [`Identity::save`], in the place of an earlier identity.
    ///
    /// # Errors
    /// An I/O error; the earlier identity stands then.
    pub fn replace(&self, path: &Path) -> Result<(), CredentialError> {
        durable_file::replace(path, self.pem.as_bytes())
            .map_err(|error| CredentialError::io(path, error))
    }

    /// What peers put into their list: SHA-256 of the public key.
    pub fn pin(&self) -> PeerId {
        self.pin
    }

    /// A key that only who has this identity can derive; other than any for another purpose.
    pub(super) fn derived_key(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, self.pem.as_bytes())
    }

    /// Key and certificates as PEM: for a TLS library.
    pub fn to_pem(&self) -> Secret {
        Secret::new(&*self.pem)
    }

    /// The certificates alone, as PEM: what may be given to anybody.
    pub fn certificates_pem(&self) -> String {
        let begin = self.pem.find(CERTIFICATE_BEGIN).unwrap_or(self.pem.len());
        self.pem[begin..].to_owned()
    }
}

/// A key that still lacks its certificate.
pub struct NewKey {
    pem: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(..)")
    }
}

impl NewKey {
    fn sign_request(key: &KeyPair, name: &str) -> Result<String, CredentialError> {
        let make = |error: rcgen::Error| CredentialError::make("certificate request", error);
        leaf_params(&[name]).serialize_request(key).and_then(|request| request.pem()).map_err(make)
    }

    /// The identity that a signed certificate (PEM) makes of it. `source` is named in errors.
    ///
    /// # Errors
    /// The certificate cannot be read, or is for another key.
    pub fn certified(&self, source: &Path, certificate: &str) -> Result<Identity, CredentialError> {
        Identity::from_pem(source, &format!("{}{certificate}", self.pem))
    }
}

/// A leaf certificate that serves both ends of a connection. Its subject is the first name; each
/// name that is a host name or an address may be demanded of it.
pub(super) fn leaf_params(names: &[&str]) -> CertificateParams {
    let alone = |name: &&str| CertificateParams::new([(*name).to_owned()]).unwrap_or_default();
    let mut params = CertificateParams::default();
    params.subject_alt_names =
        names.iter().map(alone).flat_map(|one| one.subject_alt_names).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or_default());
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

#[cfg(test)]
mod tests {
    use super::Identity;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_identity_comes_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.pem");
        let identity = Identity::generate("proxy-1").unwrap();
        identity.save(&path).unwrap();
        let loaded = Identity::load(&path).unwrap();
        assert_eq!(loaded.pin(), identity.pin());
        assert!(!loaded.certificates_pem().contains("PRIVATE"));
        assert!(!format!("{loaded:?}").contains("PRIVATE"));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let text = Identity::load(&path).unwrap_err().to_string();
        assert!(text.contains("chmod 600"), "{text}");
    }

    #[test]
    fn rubbish_and_a_foreign_certificate_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.pem");
        let (one, two) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
        let key_end = one.pem.find("-----BEGIN CERTIFICATE-----").unwrap();
        let mixed = format!("{}{}", &one.pem[..key_end], two.certificates_pem());
        assert!(Identity::from_pem(&path, &mixed).unwrap_err().to_string().contains("do not fit"));
        assert!(Identity::from_pem(&path, &one.pem[..key_end]).is_err());
        assert!(Identity::from_pem(&path, &one.certificates_pem()).is_err());
        assert!(Identity::from_pem(&path, "").is_err());
    }

    #[test]
    fn names_that_are_no_dns_names_still_make_an_identity() {
        for name in ["proxy 1", "Prüfstand", "10.0.0.1", ""] {
            Identity::generate(name).unwrap();
        }
    }
}
