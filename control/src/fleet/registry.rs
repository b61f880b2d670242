//! Who is let in: the list of enrolled movers and of invitations, kept elsewhere.
//!
//! In: pins, hashes of secrets. Out: what is known of them. gantryd keeps both in its database;
//! [`MemoryRegistry`] is for tests and for who has none. Must not: hold a secret of an invitation,
//! only its hash.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use gantry_common::enrolment::MoverRole;
use gantry_common::failure::Failure;
use gantry_common::ids::PeerId;
use gantry_common::secret::Secret;

use super::view::EnrolledMover;

/// The enrolled movers.
#[async_trait]
pub trait MoverRegistry: Send + Sync + 'static {
    /// The mover with this key; nothing if it is not enrolled, or was revoked.
    ///
    /// # Errors
    /// The registry cannot be read: the mover is asked to come back later.
    async fn enrolled(&self, pin: PeerId) -> Result<Option<EnrolledMover>, Failure>;
}

/// A mover that may enrol, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// SHA-256 of the token's secret, in hexadecimal.
    pub secret_sha256: String,
    /// Name for the mover.
    pub mover: String,
    /// What it will be for.
    pub role: MoverRole,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// From when on it is worth nothing.
    pub expires_ms: u64,
}

/// Who comes with an invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// The name that it gives.
    pub mover: String,
    /// Its key, which it has proved to hold.
    pub pin: PeerId,
    /// Key for its tickets, should it turn out to serve a repository.
    pub ticket_key: Secret,
    /// Now, milliseconds since 1970.
    pub now_ms: u64,
    /// When its certificate will end.
    pub certificate_expires_ms: u64,
}

/// Invitations, and what becomes of them.
#[async_trait]
pub trait EnrolmentStore: Send + Sync + 'static {
    /// Keeps an invitation. Another one of the same name that was not used is withdrawn.
    ///
    /// # Errors
    /// It cannot be kept.
    async fn issue(&self, invitation: Invitation) -> Result<(), Failure>;

    /// Uses an invitation up and enrols who comes with it, in one transaction: of two who come with
    /// the same one, one gets it. Nothing if there is none of this hash and name, or it was used, or
    /// has expired. An enrolled mover of the same name is revoked, since a host that was set up anew
    /// has a new key.
    ///
    /// # Errors
    /// The store failed; the invitation still holds.
    async fn take(
        &self,
        secret_sha256: &str,
        newcomer: Newcomer,
    ) -> Result<Option<Invitation>, Failure>;

    /// An enrolled mover's certificate now holds until then.
    ///
    /// # Errors
    /// It cannot be kept.
    async fn renewed(&self, pin: PeerId, certificate_expires_ms: u64) -> Result<(), Failure>;
}

/// Both, in memory.
#[derive(Debug, Default)]
pub struct MemoryRegistry {
    lists: Mutex<Lists>,
}

#[derive(Debug, Default)]
struct Lists {
    movers: BTreeMap<PeerId, EnrolledMover>,
    invitations: BTreeMap<String, Invitation>,
}

impl MemoryRegistry {
    /// Enrols a mover.
    pub fn insert(&self, mover: EnrolledMover) {
        self.lists().movers.insert(mover.pin, mover);
    }

    /// Takes a mover's enrolment back.
    pub fn revoke(&self, pin: PeerId) {
        self.lists().movers.remove(&pin);
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        // Every change is one call: a panic elsewhere leaves nothing half done.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MoverRegistry for MemoryRegistry {
    async fn enrolled(&self, pin: PeerId) -> Result<Option<EnrolledMover>, Failure> {
        Ok(self.lists().movers.get(&pin).cloned())
    }
}

#[async_trait]
impl EnrolmentStore for MemoryRegistry {
    async fn issue(&self, invitation: Invitation) -> Result<(), Failure> {
        let mut lists = self.lists();
        lists.invitations.retain(|_, older| older.mover != invitation.mover);
        lists.invitations.insert(invitation.secret_sha256.clone(), invitation);
        Ok(())
    }

    async fn take(
        &self,
        secret_sha256: &str,
        newcomer: Newcomer,
    ) -> Result<Option<Invitation>, Failure> {
        let mut lists = self.lists();
        let holds = |invitation: &&Invitation| {
            invitation.mover == newcomer.mover && newcomer.now_ms < invitation.expires_ms
        };
        let Some(invitation) = lists.invitations.get(secret_sha256).filter(holds).cloned() else {
            return Ok(None);
        };
        lists.invitations.remove(secret_sha256);
        lists.movers.retain(|_, older| older.name != invitation.mover);
        let (name, role) = (invitation.mover.clone(), invitation.role);
        let ticket_key = (role == MoverRole::Repository).then_some(newcomer.ticket_key);
        let mover = EnrolledMover { pin: newcomer.pin, name, role, ticket_key };
        lists.movers.insert(newcomer.pin, mover);
        Ok(Some(invitation))
    }

    async fn renewed(&self, _: PeerId, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}
