//! How a mover comes to its certificate: invited, let in once, renewed.
//!
//! In: an administrator's invitation; a mover's request with the token's secret, or with its
//! enrolled key. Out: the token as one line, certificates. Invariants: only a hash of a secret is
//! kept; an invitation is used at most once, also in a race; a request that is refused uses nothing
//! up. Must not: tell a stranger which part of a request was wrong.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gantry_common::enrolment::{EnrolReply, EnrolRequest, EnrolmentToken, MoverRole, RenewRequest};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::secret::Secret;
use gantry_transport::{CertificateRequest, TicketKey};

use super::registry::{EnrolmentStore, Invitation, MoverRegistry, Newcomer};
use crate::authority::{Authority, Signed, certificate_expires_ms};
use crate::limits;

const SECRET_BYTES: usize = 32;
/// Bytes of a secret that are looked at.
const SECRET_BYTES_MAX: usize = 128;

/// Where movers reach gantryd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Its REST API, `https://HOST:PORT`.
    pub url: String,
    /// Its control listener, `HOST:PORT`.
    pub control: String,
}

/// An invitation, as the administrator gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invited {
    /// The line to copy to the mover's host. Shown once.
    pub token: Secret,
    /// SHA-256 of the token's secret, in hexadecimal: what is kept of it.
    pub secret_sha256: String,
    /// From when on it is worth nothing, milliseconds since 1970.
    pub expires_ms: u64,
}

/// Invites, enrols and renews.
pub struct Enrolment {
    authority: Arc<Authority>,
    store: Arc<dyn EnrolmentStore>,
    registry: Arc<dyn MoverRegistry>,
    addresses: Addresses,
}

impl Enrolment {
    /// With this authority; `store` and `registry` are two sides of one list.
    pub fn new(
        authority: Arc<Authority>,
        store: Arc<dyn EnrolmentStore>,
        registry: Arc<dyn MoverRegistry>,
        addresses: Addresses,
    ) -> Enrolment {
        Enrolment { authority, store, registry, addresses }
    }

    /// Makes a token for a mover of this name.
    ///
    /// # Errors
    /// The name cannot be a mover's, the time is too long, or the store fails.
    pub async fn invite(
        &self,
        mover: &str,
        role: MoverRole,
        valid_for: Duration,
        now_ms: u64,
    ) -> Result<Invited, Failure> {
        self.authority.check_mover_name(mover)?;
        let max = Duration::from_secs(limits::INVITATION_SECONDS_MAX);
        if valid_for.is_zero() || valid_for > max {
            let text = format!("an invitation holds for 1 to {} s", max.as_secs());
            return Err(Failure::new(FailureKind::Usage, text));
        }
        let secret = draw_secret()?;
        let secret_sha256 = sha256(secret.reveal());
        let expires_ms = now_ms + valid_for.as_millis() as u64;
        let invitation = Invitation {
            secret_sha256: secret_sha256.clone(),
            mover: mover.to_owned(),
            role,
            created_ms: now_ms,
            expires_ms,
        };
        self.store.issue(invitation).await?;
        let token = EnrolmentToken {
            url: self.addresses.url.clone(),
            ca_sha256: self.authority.certificate_sha256(),
            control: self.addresses.control.clone(),
            name: self.authority.names().first().cloned().unwrap_or_default(),
            mover: mover.to_owned(),
            role,
            secret,
        };
        Ok(Invited { token: token.to_line(), secret_sha256, expires_ms })
    }

    /// Lets a mover in that was invited, and signs its key: `POST /api/v1/enroll`.
    ///
    /// # Errors
    /// [`FailureKind::Usage`]: the request for a certificate is none (nothing was used up).
    /// [`FailureKind::Refused`]: no such invitation. Else the store failed.
    pub async fn enroll(&self, request: EnrolRequest, now_ms: u64) -> Result<EnrolReply, Failure> {
        // First, so that a request that cannot be signed uses no invitation up.
        let key = CertificateRequest::parse(&request.csr)?;
        let known = self.authority.check_mover_name(&request.mover).is_ok()
            && request.secret.reveal().len() <= SECRET_BYTES_MAX;
        if !known {
            return Err(not_invited());
        }
        let newcomer = Newcomer {
            mover: request.mover,
            pin: key.pin(),
            ticket_key: TicketKey::random()?.to_text(),
            now_ms,
            certificate_expires_ms: certificate_expires_ms(now_ms),
        };
        let taken = self.store.take(&sha256(request.secret.reveal()), newcomer).await?;
        let invitation = taken.ok_or_else(not_invited)?;
        let signed = self.authority.sign(&key, &invitation.mover, now_ms)?;
        tracing::info!(mover = invitation.mover, role = %invitation.role, pin = %key.pin(), "a mover has enrolled");
        Ok(self.reply(signed))
    }

    /// Signs an enrolled mover's key for longer: `POST /api/v1/enroll/renew`. That the request is
    /// signed with the key is the proof; what is given is no secret.
    ///
    /// # Errors
    /// As [`Enrolment::enroll`]; refused if the key is not enrolled, or was revoked.
    pub async fn renew(&self, request: RenewRequest, now_ms: u64) -> Result<EnrolReply, Failure> {
        let key = CertificateRequest::parse(&request.csr)?;
        let enrolled = self.registry.enrolled(key.pin()).await?.ok_or_else(|| {
            let text = "this key is not enrolled, or was revoked: enrol the mover again";
            Failure::new(FailureKind::Refused, text)
        })?;
        let signed = self.authority.sign(&key, &enrolled.name, now_ms)?;
        self.store.renewed(key.pin(), signed.expires_ms).await?;
        Ok(self.reply(signed))
    }

    fn reply(&self, signed: Signed) -> EnrolReply {
        let authority = self.authority.certificate_pem().to_owned();
        EnrolReply { certificate: signed.certificate, authority }
    }
}

fn not_invited() -> Failure {
    let text = "this enrolment token does not hold: it was used, has expired, or is for another mover; ask for a new one";
    Failure::new(FailureKind::Refused, text)
}

fn draw_secret() -> Result<Secret, Failure> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(|error| {
        Failure::new(FailureKind::Internal, format!("the system gives no randomness: {error}"))
    })?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(secret)))
}

/// No salt and no slow hash: the secret is 256 random bits.
fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
