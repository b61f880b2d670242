//! Names of things: blocks, repositories, sessions, restore points, disks.
//!
//! In: random bytes and keys from the caller. Out: small `Copy` ids with one text form each.
//! Invariant: an id's text form parses back to the same id; nothing here draws randomness.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is no id: what was expected, and what was found instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{found}' is no {expected}: {expected}s are {digits} hexadecimal digits")]
pub struct IdParseError {
    expected: &'static str,
    digits: usize,
    found: String,
}

fn parse_hex<const N: usize>(text: &str, expected: &'static str) -> Result<[u8; N], IdParseError> {
    let error = || IdParseError { expected, digits: N * 2, found: text.chars().take(80).collect() };
    if text.len() != N * 2 || !text.is_ascii() {
        return Err(error());
    }
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| error())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
    }
    Ok(out)
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $text:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Length in bytes.
            pub const BYTES: usize = $bytes;
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(text: &str) -> Result<Self, IdParseError> {
                parse_hex(text, $text).map($name)
            }
        }
    };
}

hex_id!(
    /// Content address of a block (or of a map node): BLAKE3-256 of its raw bytes, keyed by the
    /// repository's [`IdKey`]. All zero bytes stand for "reads as zeros" in a map node.
    BlockId,
    32,
    "block id"
);
hex_id!(
    /// One repository, drawn at `repo init`.
    RepositoryId,
    16,
    "repository id"
);
hex_id!(
    /// One backup session of one VM, drawn by whoever starts it; a resume keeps it.
    SessionId,
    16,
    "session id"
);
hex_id!(
    /// One task of a mover under gantryd: one disk of a backup, or a restore.
    TaskId,
    16,
    "task id"
);
hex_id!(
    /// One restore point. The first 6 bytes are the milliseconds of its creation since 1970
    /// (big endian), so that ids sort by time; the rest is random.
    PointId,
    16,
    "restore point id"
);
hex_id!(
    /// SHA-256 of a mover's public key (its certificate's SubjectPublicKeyInfo, DER): the pin.
    PeerId,
    32,
    "peer pin"
);

impl BlockId {
    /// The id that stands for a block, or a whole map subtree, of zeros.
    pub const ZERO: BlockId = BlockId([0; 32]);

    /// Whether this is [`BlockId::ZERO`].
    pub fn is_zero(&self) -> bool {
        *self == BlockId::ZERO
    }
}

impl PointId {
    /// A point created at `created_ms` (milliseconds since 1970) with 10 random bytes.
    pub fn new(created_ms: u64, random: [u8; 10]) -> PointId {
        let mut out = [0; 16];
        out[..6].copy_from_slice(&created_ms.to_be_bytes()[2..]);
        out[6..].copy_from_slice(&random);
        PointId(out)
    }

    /// Milliseconds since 1970 at which the point was created.
    pub fn created_ms(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(bytes)
    }
}

/// The key of a repository's id domain. Secret-ish: whoever holds it can test whether a known
/// block is stored, so it never appears in `Debug` output or logs.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdKey(pub [u8; 32]);

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey(..)")
    }
}

impl IdKey {
    /// The id of a block with these raw bytes (BLAKE3 keyed mode).
    pub fn block_id(&self, raw: &[u8]) -> BlockId {
        BlockId(*blake3::keyed_hash(&self.0, raw).as_bytes())
    }

    /// The key for map nodes: derived, so that no guest block can pass for a node.
    pub fn node_key(&self) -> IdKey {
        IdKey(blake3::derive_key("gantry 2026 map node id", &self.0))
    }
}

/// Checksum of a record's *stored* bytes: BLAKE3-256 cut to 128 bits, without a key, so that
/// scrubbing needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredChecksum(pub [u8; 16]);

impl StoredChecksum {
    /// The checksum of these stored bytes.
    pub fn of(stored: &[u8]) -> StoredChecksum {
        let mut out = [0; 16];
        out.copy_from_slice(&blake3::hash(stored).as_bytes()[..16]);
        StoredChecksum(out)
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockId, IdKey, PointId, SessionId};

    #[test]
    fn text_forms_parse_back_and_reject_rubbish() {
        let id = SessionId([0xab; 16]);
        assert_eq!(id.to_string().parse::<SessionId>(), Ok(id));
        for bad in ["", "ab", "zz".repeat(16).as_str(), "é".repeat(16).as_str()] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn point_ids_sort_by_time() {
        let early = PointId::new(1_000, [0xff; 10]);
        let late = PointId::new(1_001, [0; 10]);
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(late.created_ms(), 1_001);
    }

    #[test]
    fn node_ids_live_in_their_own_domain() {
        let key = IdKey([7; 32]);
        assert_ne!(key.block_id(b"x"), key.node_key().block_id(b"x"));
        assert_ne!(key.block_id(b""), BlockId::ZERO);
    }
}
