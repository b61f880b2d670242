//! Gantry's mark on its snapshots: by it a stranded one is known again. Pure.
//!
//! The name alone decides; the description is for people. It holds the session and a digest of the
//! vCenter, so that two Gantrys, or one Gantry behind two vCenters, do not remove each other's.

use gantry_common::ids::SessionId;
use serde::Serialize;

/// How every name begins. A person must be able to see whose snapshot it is.
const PREFIX: &str = "gantry-backup-";
/// Digits of the vCenter's part.
const VCENTER_DIGITS: usize = 8;

/// What a snapshot's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The session that made it.
    pub session: SessionId,
    /// Digest of the Gantry instance and the vCenter it belongs to.
    owner: String,
}

#[derive(Serialize)]
struct Description<'a> {
    made_by: &'a str,
    session: String,
    note: &'a str,
}

impl Mark {
    /// The mark of a session. `owner` names this Gantry installation and this vCenter (its instance
    /// UUID; for an ESXi its endpoint).
    pub fn new(session: SessionId, owner: &str) -> Mark {
        Mark { session, owner: digest(owner) }
    }

    /// The snapshot's name: `gantry-backup-<owner>-<session>`.
    pub fn name(&self) -> String {
        format!("{PREFIX}{}-{}", self.owner, self.session)
    }

    /// The snapshot's description: small, JSON.
    pub fn description(&self) -> String {
        let description = Description {
            made_by: "Gantry",
            session: self.session.to_string(),
            note: "temporary; removed at the end of the backup",
        };
        serde_json::to_string(&description).unwrap_or_default()
    }

    /// Whether a snapshot's name is one of Gantry's, of whatever owner.
    pub fn is_gantrys(name: &str) -> bool {
        Mark::parse(name).is_some()
    }

    /// The session of a snapshot's name, if `owner` made it.
    pub fn session_of(name: &str, owner: &str) -> Option<SessionId> {
        Mark::parse(name).filter(|mark| mark.owner == digest(owner)).map(|mark| mark.session)
    }

    fn parse(name: &str) -> Option<Mark> {
        let (owner, session) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let is_digest =
            owner.len() == VCENTER_DIGITS && owner.bytes().all(|b| b.is_ascii_hexdigit());
        let session = session.parse().ok()?;
        is_digest.then(|| Mark { session, owner: owner.to_owned() })
    }
}

/// FNV-1a, 32 bits: it tells owners apart, it guards nothing.
fn digest(owner: &str) -> String {
    let hash = owner
        .to_lowercase()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::Mark;
    use gantry_common::ids::SessionId;

    #[test]
    fn a_mark_is_known_again_only_by_its_owner() {
        let session = SessionId([7; 16]);
        let name = Mark::new(session, "VCENTER-1").name();
        assert!(Mark::is_gantrys(&name) && name.len() < 80, "vSphere allows 80 characters");
        assert_eq!(Mark::session_of(&name, "vcenter-1"), Some(session));
        assert_eq!(Mark::session_of(&name, "vcenter-2"), None);
        for foreign in [
            "",
            "gantry-backup-",
            "before update",
            "gantry-backup-0-1",
            &name[1..],
            &format!("{name}0"),
            &format!("copy of {name}"),
        ] {
            assert!(!Mark::is_gantrys(foreign), "{foreign}");
        }
        assert!(Mark::new(session, "v").description().len() < 300);
    }
}
