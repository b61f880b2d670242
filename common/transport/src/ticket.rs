//! Session tickets: proof that one peer may do one thing with one name, for a while.
//!
//! In: what is granted, a key. Out: bytes that only the key's holder can make, and their check. A
//! ticket is `postcard(Ticket)` and its MAC, keyed BLAKE3; it is signed, not secret, and worth
//! nothing to a peer with another key than the one named in it. Must not: read a clock.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PeerId, RepositoryId, SessionId};
use gantry_common::limits;
use gantry_common::secret::Secret;
use gantry_common::wire::TicketBytes;
use serde::{Deserialize, Serialize};

use super::durable_file;
use super::secret_file::{CredentialError, read_secret, write_secret};

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = blake3::OUT_LEN;
/// Longest ticket: a name and a few ids.
const TICKET_BYTES_MAX: usize = limits::NAME_BYTES_MAX + 256;
/// Binds the key to this use and this form of [`Ticket`]; a new form gets a new context.
const CONTEXT: &str = "gantry 2026 session ticket 2";

/// What a ticket allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// To bring restore points in.
    pub backup: bool,
    /// To list and read them.
    pub restore: bool,
    /// To look after the repository: delete points, collect, verify.
    pub manage: bool,
}

impl Rights {
    /// Bringing in only.
    pub const BACKUP: Rights = Rights { backup: true, restore: false, manage: false };
    /// Reading only.
    pub const RESTORE: Rights = Rights { backup: false, restore: true, manage: false };
    /// Looking after the repository only.
    pub const MANAGE: Rights = Rights { backup: false, restore: false, manage: true };

    /// Whether all of `wanted` is allowed.
    pub fn allow(self, wanted: Rights) -> bool {
        (self.backup || !wanted.backup)
            && (self.restore || !wanted.restore)
            && (self.manage || !wanted.manage)
    }
}

/// What is granted to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The session; a resume keeps it.
    pub session: SessionId,
    /// The repository.
    pub repository: RepositoryId,
    /// Whose ticket it is.
    pub peer: PeerId,
    /// The VM's name whose points it is about; empty where it is about all.
    pub name: String,
    /// For what.
    pub rights: Rights,
    /// Milliseconds since 1970 from which on it is worth nothing.
    pub expires_ms: u64,
}

/// What a peer asks for; a ticket must say the same.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The session of its `Hello`.
    pub session: SessionId,
    /// The repository that it is to.
    pub repository: RepositoryId,
    /// The key that it proved to hold.
    pub peer: PeerId,
    /// The VM's name.
    pub name: &'a str,
    /// What it wants to do.
    pub rights: Rights,
}

/// What was granted and is taken back.
#[derive(Debug, Clone, Default)]
pub struct Revoked {
    /// Sessions whose tickets are void.
    pub sessions: BTreeSet<SessionId>,
    /// Movers whose tickets are void.
    pub peers: BTreeSet<PeerId>,
}

/// Why a ticket does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not made with our key, or changed since.
    #[error(
        "the ticket is not one of ours: it was forged, damaged, or made before the key changed"
    )]
    Forged,
    /// Too late.
    #[error("the ticket of session {session} expired {late_s} s ago: ask for a new one")]
    Expired {
        /// Whose.
        session: SessionId,
        /// Seconds since.
        late_s: u64,
    },
    /// Made out to somebody else.
    #[error("the ticket was made out to the mover with pin {owner}, not to this one")]
    OtherPeer {
        /// To whom.
        owner: PeerId,
    },
    /// For another session.
    #[error("the ticket is for session {session}")]
    OtherSession {
        /// For which.
        session: SessionId,
    },
    /// For another repository.
    #[error("the ticket is for repository {repository}")]
    OtherRepository {
        /// For which.
        repository: RepositoryId,
    },
    /// For another VM.
    #[error("the ticket is for '{name}'")]
    OtherName {
        /// For which.
        name: String,
    },
    /// Not for what is asked.
    #[error("the ticket does not allow to {what}")]
    NotAllowed {
        /// What is asked.
        what: &'static str,
    },
    /// Taken back.
    #[error("the ticket of session {session} was revoked")]
    Revoked {
        /// Whose.
        session: SessionId,
    },
}

impl From<TicketError> for Failure {
    fn from(error: TicketError) -> Failure {
        Failure::new(FailureKind::Refused, error.to_string())
    }
}

/// The key that makes and checks tickets.
#[derive(Clone)]
pub struct TicketKey {
    secret: [u8; KEY_BYTES],
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

impl TicketKey {
    /// A key of this process: its tickets die with it.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn random() -> Result<TicketKey, CredentialError> {
        let mut secret = [0; KEY_BYTES];
        getrandom::fill(&mut secret).map_err(|error| CredentialError::make("ticket key", error))?;
        Ok(TicketKey { secret })
    }

    /// Reads the file that [`TicketKey::save`] wrote.
    ///
    /// # Errors
    /// Others can read the file, or it is no key.
    pub fn load(path: &Path) -> Result<TicketKey, CredentialError> {
        let secret = read_secret(path)?.try_into().map_err(|_| {
            CredentialError::content(path, format!("is no ticket key of {KEY_BYTES} bytes"))
        })?;
        Ok(TicketKey { secret })
    }

    /// Writes the key to a new file of mode 0600.
    ///
    /// # Errors
    /// The file exists, or an I/O error.
    pub fn save(&self, path: &Path) -> Result<(), CredentialError> {
        write_secret(path, &self.secret)
    }

    /// The key as text, for who must be told it over an authenticated link or keep it encrypted.
    pub fn to_text(&self) -> Secret {
        // As ids are written: 64 hexadecimal digits.
        Secret::new(PeerId(self.secret).to_string())
    }

    /// Reads [`TicketKey::to_text`]; nothing if it is no key.
    pub fn from_text(text: &Secret) -> Option<TicketKey> {
        text.reveal().parse::<PeerId>().ok().map(|PeerId(secret)| TicketKey { secret })
    }

    /// As [`TicketKey::save`], in the place of an earlier key.
    ///
    /// # Errors
    /// An I/O error; the earlier key stands then.
    pub fn replace(&self, path: &Path) -> Result<(), CredentialError> {
        durable_file::replace(path, &self.secret).map_err(|error| CredentialError::io(path, error))
    }

    fn mac(&self, body: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&blake3::derive_key(CONTEXT, &self.secret), body)
    }

    /// Makes a ticket.
    ///
    /// # Panics
    /// If the name is beyond `limits::NAME_BYTES_MAX`, which the protocol forbids.
    pub fn issue(&self, ticket: &Ticket) -> TicketBytes {
        assert!(ticket.name.len() <= limits::NAME_BYTES_MAX, "name of {} bytes", ticket.name.len());
        let mut bytes = postcard::to_stdvec(ticket).expect("tickets always encode");
        let mac = self.mac(&bytes);
        bytes.extend_from_slice(mac.as_bytes());
        TicketBytes(bytes)
    }

    /// Checks that a ticket was made with this key and covers the claim at `now_ms` (since 1970).
    ///
    /// # Errors
    /// [`TicketError`] says which part does not hold. Nothing in a ticket is looked at before its
    /// MAC is found right, in time that does not depend on how wrong it is.
    pub fn verify(
        &self,
        bytes: &TicketBytes,
        claim: &Claim<'_>,
        now_ms: u64,
        revoked: &Revoked,
    ) -> Result<Ticket, TicketError> {
        let bytes = &bytes.0[..];
        if bytes.len() > TICKET_BYTES_MAX {
            return Err(TicketError::Forged);
        }
        let (body, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(TicketError::Forged)?;
        // `blake3::Hash` compares in constant time.
        if self.mac(body) != blake3::Hash::from_bytes(*mac) {
            return Err(TicketError::Forged);
        }
        let (ticket, rest) =
            postcard::take_from_bytes::<Ticket>(body).map_err(|_| TicketError::Forged)?;
        if !rest.is_empty() {
            return Err(TicketError::Forged);
        }
        covers(&ticket, claim, now_ms, revoked)?;
        Ok(ticket)
    }
}

fn covers(
    ticket: &Ticket,
    claim: &Claim<'_>,
    now_ms: u64,
    revoked: &Revoked,
) -> Result<(), TicketError> {
    let session = ticket.session;
    if ticket.peer != claim.peer {
        return Err(TicketError::OtherPeer { owner: ticket.peer });
    }
    if session != claim.session {
        return Err(TicketError::OtherSession { session });
    }
    if ticket.repository != claim.repository {
        return Err(TicketError::OtherRepository { repository: ticket.repository });
    }
    if ticket.name != claim.name {
        return Err(TicketError::OtherName { name: ticket.name.clone() });
    }
    if !ticket.rights.allow(claim.rights) {
        let what = match (claim.rights, ticket.rights) {
            (Rights { backup: true, .. }, Rights { backup: false, .. }) => "back up",
            (Rights { manage: true, .. }, Rights { manage: false, .. }) => "manage the repository",
            _ => "restore",
        };
        return Err(TicketError::NotAllowed { what });
    }
    if revoked.sessions.contains(&session) || revoked.peers.contains(&ticket.peer) {
        return Err(TicketError::Revoked { session });
    }
    if now_ms >= ticket.expires_ms {
        let late_s = (now_ms - ticket.expires_ms) / 1000;
        return Err(TicketError::Expired { session, late_s });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn ticket() -> Ticket {
        Ticket {
            session: SessionId([1; 16]),
            repository: RepositoryId([2; 16]),
            peer: PeerId([3; 32]),
            name: "web-01".into(),
            rights: Rights::BACKUP,
            expires_ms: NOW_MS + 1,
        }
    }

    fn claim() -> Claim<'static> {
        Claim {
            session: SessionId([1; 16]),
            repository: RepositoryId([2; 16]),
            peer: PeerId([3; 32]),
            name: "web-01",
            rights: Rights::BACKUP,
        }
    }

    #[test]
    fn a_ticket_holds_for_its_claim_and_no_other() {
        let key = TicketKey::random().unwrap();
        let bytes = key.issue(&ticket());
        let check = |claim: &Claim<'_>, now_ms| {
            key.verify(&bytes, claim, now_ms, &Revoked::default()).map(|_| ())
        };
        assert_eq!(check(&claim(), NOW_MS), Ok(()));
        let (session, repository) = (SessionId([1; 16]), RepositoryId([2; 16]));
        let late = Err(TicketError::Expired { session, late_s: 2 });
        assert_eq!(check(&claim(), NOW_MS + 2001), late);
        let owner = PeerId([3; 32]);
        let other = Claim { peer: PeerId([9; 32]), ..claim() };
        assert_eq!(check(&other, NOW_MS), Err(TicketError::OtherPeer { owner }));
        let other = Claim { session: SessionId([9; 16]), ..claim() };
        assert_eq!(check(&other, NOW_MS), Err(TicketError::OtherSession { session }));
        let other = Claim { repository: RepositoryId([9; 16]), ..claim() };
        assert_eq!(check(&other, NOW_MS), Err(TicketError::OtherRepository { repository }));
        let other = Claim { name: "web-02", ..claim() };
        let name = "web-01".into();
        assert_eq!(check(&other, NOW_MS), Err(TicketError::OtherName { name }));
        let other = Claim { rights: Rights::RESTORE, ..claim() };
        let what = "restore";
        assert_eq!(check(&other, NOW_MS), Err(TicketError::NotAllowed { what }));
        let other = Claim { rights: Rights::MANAGE, ..claim() };
        let what = "manage the repository";
        assert_eq!(check(&other, NOW_MS), Err(TicketError::NotAllowed { what }));
    }

    #[test]
    fn revoked_sessions_and_movers_are_refused() {
        let key = TicketKey::random().unwrap();
        let bytes = key.issue(&ticket());
        let (session, peer) = (ticket().session, ticket().peer);
        for revoked in [
            Revoked { sessions: [session].into(), ..Revoked::default() },
            Revoked { peers: [peer].into(), ..Revoked::default() },
        ] {
            let error = key.verify(&bytes, &claim(), NOW_MS, &revoked).unwrap_err();
            assert_eq!(error, TicketError::Revoked { session });
            assert_eq!(Failure::from(error).kind, FailureKind::Refused);
        }
    }

    #[test]
    fn no_changed_bit_and_no_other_key_passes() {
        let key = TicketKey::random().unwrap();
        let TicketBytes(bytes) = key.issue(&ticket());
        let forged = |bytes: Vec<u8>, key: &TicketKey| {
            let none = Revoked::default();
            key.verify(&TicketBytes(bytes), &claim(), NOW_MS, &none) == Err(TicketError::Forged)
        };
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(forged(changed, &key), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(forged(bytes[..len].to_vec(), &key), "cut to {len}");
        }
        assert!(forged([&bytes[..], &[0]].concat(), &key));
        assert!(forged(vec![0; 1 << 20], &key));
        assert!(forged(bytes, &TicketKey::random().unwrap()));
    }

    #[test]
    fn a_key_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tickets.key");
        let key = TicketKey::random().unwrap();
        key.save(&path).unwrap();
        let again = TicketKey::load(&path).unwrap();
        assert_eq!(again.issue(&ticket()), key.issue(&ticket()));
        assert_eq!(format!("{key:?}"), "TicketKey(..)");
        let short = folder.path().join("short");
        write_secret(&short, b"short").unwrap();
        assert!(TicketKey::load(&short).unwrap_err().to_string().contains("32 bytes"));
    }

    #[test]
    fn a_key_is_told_as_text_and_replaced_in_its_file() {
        let key = TicketKey::random().unwrap();
        let told = TicketKey::from_text(&key.to_text()).unwrap();
        assert_eq!(told.secret, key.secret);
        assert!(TicketKey::from_text(&gantry_common::secret::Secret::new("abc")).is_none());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket.key");
        TicketKey::random().unwrap().replace(&path).unwrap();
        key.replace(&path).unwrap();
        assert_eq!(TicketKey::load(&path).unwrap().secret, key.secret);
    }
}
