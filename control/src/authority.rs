//! The installation's certificate authority, and gantryd's own certificate.
//!
//! In: gantryd's state folder, the names by which it is reached, requests of movers. Out: the
//! authority's certificate, gantryd's identity, certificates for movers. Files, all of mode 0600:
//! `authority.pem` (made once, never replaced: with it goes every mover's trust) and `gantryd.pem`
//! (renewed in time; only the authority vouches for it). Must not: show a key, or decide who gets a
//! certificate.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_transport::{
    CertificateAuthority, CertificateRequest, CredentialError, Identity, Trust,
};

use crate::limits;

const DAY_SECONDS: u64 = 86_400;
const VALID_FOR: Duration = Duration::from_secs(limits::CERTIFICATE_DAYS * DAY_SECONDS);
const RENEW_MS: u64 = limits::CERTIFICATE_RENEW_DAYS * DAY_SECONDS * 1000;

/// A mover's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// PEM.
    pub certificate: String,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: u64,
}

/// The authority of one installation.
#[derive(Debug)]
pub struct Authority {
    authority: CertificateAuthority,
    identity: RwLock<Identity>,
    identity_path: PathBuf,
    names: Vec<String>,
}

impl Authority {
    /// Reads the authority and gantryd's certificate from its state folder; makes what is missing,
    /// and the certificate anew if it soon ends or is for other names. `names` are host names and
    /// addresses under which movers and people reach gantryd; the first is the one that movers
    /// demand.
    ///
    /// # Errors
    /// A file that others can read, that is damaged or cannot be written, or no usable names.
    pub fn open(folder: &Path, names: &[String], now_ms: u64) -> Result<Authority, Failure> {
        if names.is_empty() || names.len() > limits::CERTIFICATE_NAMES_MAX {
            let text = format!(
                "gantryd's certificate needs 1 to {} names: give the host names and addresses by which it is reached",
                limits::CERTIFICATE_NAMES_MAX
            );
            return Err(Failure::new(FailureKind::Usage, text));
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| cannot_write(folder, &error))?;
        let authority = open_authority(&folder.join("authority.pem"))?;
        let identity_path = folder.join("gantryd.pem");
        let identity = match identity_path.exists() {
            true => Identity::load(&identity_path)?,
            false => renew(&authority, &identity_path, names)?,
        };
        let names = names.to_vec();
        let identity = RwLock::new(identity);
        let opened = Authority { authority, identity, identity_path, names };
        opened.renew_if_due(now_ms)?;
        Ok(opened)
    }

    /// gantryd's own certificate with its key, as server and as client. Its chain ends with the
    /// authority's certificate.
    pub fn identity(&self) -> Identity {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes gantryd's certificate anew if it soon ends; whether it did. To be asked once a day.
    ///
    /// # Errors
    /// It cannot be made or written; the old one stays in use.
    pub fn renew_if_due(&self, now_ms: u64) -> Result<bool, Failure> {
        let identity = self.identity();
        // Nor is it of use if somebody has taken authority.pem away, and there is another now.
        let is_ours = identity.certificates_pem().ends_with(self.authority.certificate_pem());
        let trust = self.trust()?;
        let holds_for = |name: &String| {
            let trust = trust.clone().expect_name(name);
            trust.is_ok_and(|trust| trust.accepts(&identity, now_ms + RENEW_MS).is_ok())
        };
        if is_ours && self.names.iter().all(holds_for) {
            return Ok(false);
        }
        let renewed = renew(&self.authority, &self.identity_path, &self.names)?;
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(true)
    }

    /// Whom gantryd lets in, and movers each other: whomever this authority has signed for.
    ///
    /// # Errors
    /// Its own certificate cannot be read, which only a bug brings about.
    pub fn trust(&self) -> Result<Trust, CredentialError> {
        Trust::parse(Path::new("the authority"), self.certificate_pem().as_bytes())
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// SHA-256 of that certificate (DER), in hexadecimal: what enrolment tokens name it by.
    pub fn certificate_sha256(&self) -> String {
        let digest = self.authority.certificate_sha256();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Names under which gantryd is reached, the one that movers demand first.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A certificate for a mover's key, with its name as subject, for 90 days.
    ///
    /// # Errors
    /// The name might pass for gantryd's, or a bug.
    pub fn sign(
        &self,
        request: &CertificateRequest,
        mover: &str,
        now_ms: u64,
    ) -> Result<Signed, Failure> {
        self.check_mover_name(mover)?;
        let certificate = self.authority.sign(request, mover, VALID_FOR)?;
        Ok(Signed { certificate, expires_ms: certificate_expires_ms(now_ms) })
    }

    /// Whether a mover may be called this. Its certificate is for the host of that name, so it must
    /// be none of gantryd's, nor a pattern that covers one.
    ///
    /// # Errors
    /// What to change.
    pub fn check_mover_name(&self, name: &str) -> Result<(), Failure> {
        let refuse = |text: String| Err(Failure::new(FailureKind::Usage, text));
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let ends_well = !name.starts_with(['.', '-']) && !name.ends_with('.');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) || !ends_well {
            let shown: String = name.escape_default().take(80).collect();
            return refuse(format!(
                "'{shown}' is no name for a mover: give up to 64 letters, digits, '-', '_' and '.'"
            ));
        }
        if self.names.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            return refuse(format!("'{name}' is gantryd's own name: call the mover otherwise"));
        }
        Ok(())
    }
}

/// When a mover's certificate ends that is signed now.
pub fn certificate_expires_ms(now_ms: u64) -> u64 {
    now_ms + VALID_FOR.as_millis() as u64
}

fn open_authority(path: &Path) -> Result<CertificateAuthority, CredentialError> {
    if !path.exists() {
        match CertificateAuthority::generate()?.save(path) {
            // Another process made it just now: there must be one.
            Err(CredentialError::Exists { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    CertificateAuthority::load(path)
}

fn renew(
    authority: &CertificateAuthority,
    path: &Path,
    names: &[String],
) -> Result<Identity, Failure> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let identity = authority.issue_server(&names, VALID_FOR)?;
    identity.replace(path)?;
    Ok(identity)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::Usage, format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::{SystemTime, UNIX_EPOCH};

    fn names() -> Vec<String> {
        vec!["gantryd.example".into(), "127.0.0.1".into()]
    }

    fn now_ms() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
    }

    #[test]
    fn an_authority_is_made_once_and_its_certificate_renewed_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = Authority::open(&state, &names(), now_ms()).unwrap();
        for file in ["authority.pem", "gantryd.pem"] {
            assert_eq!(fs::metadata(state.join(file)).unwrap().mode() & 0o777, 0o600, "{file}");
        }
        assert!(!format!("{first:?}").contains("PRIVATE"));
        let again = Authority::open(&state, &names(), now_ms()).unwrap();
        assert_eq!(again.certificate_sha256(), first.certificate_sha256());
        assert_eq!(again.identity().pin(), first.identity().pin(), "as it was");
        let day = DAY_SECONDS * 1000;
        assert!(!again.renew_if_due(now_ms() + 59 * day).unwrap());
        assert!(again.renew_if_due(now_ms() + 61 * day).unwrap());
        assert_ne!(again.identity().pin(), first.identity().pin());
        let kept = Authority::open(&state, &names(), now_ms()).unwrap();
        assert_eq!(kept.identity().pin(), again.identity().pin());
        let other = Authority::open(&state, &["other.example".into()], now_ms()).unwrap();
        let demanded = other.trust().unwrap().expect_name("other.example").unwrap();
        demanded.accepts(&other.identity(), now_ms()).unwrap();
        assert!(demanded.accepts(&first.identity(), now_ms()).is_err());
        assert_eq!(other.certificate_sha256(), first.certificate_sha256());
    }

    #[test]
    fn keys_that_others_can_read_or_that_are_damaged_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        Authority::open(folder.path(), &names(), now_ms()).unwrap();
        let path = folder.path().join("authority.pem");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let error = Authority::open(folder.path(), &names(), now_ms()).unwrap_err();
        assert!(error.message.contains("chmod 600"), "{error}");
        fs::write(&path, "nothing").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(Authority::open(folder.path(), &names(), now_ms()).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"nothing", "an authority is never replaced");
        // A new authority in its place: gantryd's certificate follows.
        fs::remove_file(&path).unwrap();
        let new = Authority::open(folder.path(), &names(), now_ms()).unwrap();
        assert!(new.identity().certificates_pem().ends_with(new.certificate_pem()));
    }

    #[test]
    fn no_mover_gets_a_name_that_passes_for_gantryd() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), &names(), now_ms()).unwrap();
        let long = "n".repeat(65);
        for name in
            ["", "gantryd.example", "GANTRYD.example", "127.0.0.1", "*.example", "a b", "x.", &long]
        {
            assert!(authority.check_mover_name(name).is_err(), "{name}");
        }
        for name in ["proxy-1", "p_2.example", "10.0.0.9"] {
            authority.check_mover_name(name).unwrap();
        }
    }
}
