//! Ids of records: 16 bytes, written as 32 hexadecimal digits wherever they are seen or kept.
//!
//! The first 6 bytes are the milliseconds of the record's creation since 1970 (big endian), the rest
//! is random, as in [`gantry_common::ids::PointId`]: ids sort by time. One kind of id serves all
//! records; a VM run's id is its mover session's, a task's id is its mover task's.

use std::fmt;
use std::str::FromStr;

use gantry_common::ids::{SessionId, TaskId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Name of a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id(pub [u8; 16]);

/// Text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no id: give 32 hexadecimal digits")]
pub struct IdError(String);

impl Id {
    /// A record created at `created_ms` with 10 random bytes.
    pub fn new(created_ms: u64, random: [u8; 10]) -> Id {
        let mut out = [0; 16];
        out[..6].copy_from_slice(&created_ms.to_be_bytes()[2..]);
        out[6..].copy_from_slice(&random);
        Id(out)
    }

    /// A record created at `created_ms`, with bytes of the system's random source.
    ///
    /// # Panics
    /// The system has no random source: nothing could be trusted then.
    pub fn draw(created_ms: u64) -> Id {
        let mut random = [0; 10];
        getrandom::fill(&mut random).expect("the system has a random source");
        Id::new(created_ms, random)
    }

    /// Milliseconds since 1970 at which the record was created.
    pub fn created_ms(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(bytes)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

impl FromStr for Id {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Id, IdError> {
        let error = || IdError(text.chars().take(80).collect());
        // One form only, so that an id in a text column compares as it stands.
        let fits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(fits) {
            return Err(error());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| error())?;
        Ok(Id(number.to_be_bytes()))
    }
}

impl From<Id> for SessionId {
    fn from(id: Id) -> SessionId {
        SessionId(id.0)
    }
}

impl From<Id> for TaskId {
    fn from(id: Id) -> TaskId {
        TaskId(id.0)
    }
}

impl From<SessionId> for Id {
    fn from(id: SessionId) -> Id {
        Id(id.0)
    }
}

impl From<TaskId> for Id {
    fn from(id: TaskId) -> Id {
        Id(id.0)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        super::text::deserialize(deserializer)
    }
}
