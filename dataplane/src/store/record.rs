//! One stored block or map node: a 128-byte header, the stored bytes, zeros up to 4 KiB.
//!
//! In: a head and stored bytes, or foreign bytes. Out: bytes, or a head that can be trusted as far
//! as its checks went. Nothing in a record says where it stands, so that it can be copied to
//! another pack verbatim. Drawn in docs/repository-format.md.

use gantry_common::ids::{BlockId, IdKey, RepositoryId, SessionId, StoredChecksum};
use gantry_common::limits;
use gantry_common::wire::{BlockHead, Codec, TaskNumber};
use zstd_safe::DCtx;

use super::fields::Fields;
use super::layout::{ALIGN, FORMAT_VERSION};

/// First bytes of every record.
pub const RECORD_MAGIC: [u8; 8] = *b"GANTREC\x1a";
/// Bytes of a record's header.
pub const RECORD_HEAD_BYTES: usize = 128;
const HEAD_CRC_AT: usize = 124;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// A guest block.
    Block,
    /// A node of a map tree.
    Node,
}

impl RecordKind {
    /// As a byte.
    pub fn code(self) -> u8 {
        match self {
            RecordKind::Block => 1,
            RecordKind::Node => 2,
        }
    }

    /// From a byte.
    pub fn from_code(code: u8) -> Option<RecordKind> {
        [RecordKind::Block, RecordKind::Node].into_iter().find(|kind| kind.code() == code)
    }
}

/// A codec as a byte.
pub fn codec_code(codec: Codec) -> u8 {
    match codec {
        Codec::Raw => 0,
        Codec::Zstd => 1,
    }
}

/// A codec from a byte.
pub fn codec_from_code(code: u8) -> Option<Codec> {
    [Codec::Raw, Codec::Zstd].into_iter().find(|codec| codec_code(*codec) == code)
}

/// Where a record first belonged: lets maps be salvaged from packs alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Session that wrote it.
    pub session: SessionId,
    /// Disk within the session.
    pub task: TaskNumber,
    /// Block number, or a node's number within its level.
    pub block: u64,
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// What it holds.
    pub kind: RecordKind,
    /// Coding of the stored bytes.
    pub codec: Codec,
    /// Bytes when decoded.
    pub raw_len: u32,
    /// Bytes as stored.
    pub stored_len: u32,
    /// Id of the raw bytes.
    pub id: BlockId,
    /// Checksum of the stored bytes.
    pub checksum: StoredChecksum,
    /// Where it first belonged.
    pub origin: Origin,
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// Other bytes stand here.
    #[error("no record begins here")]
    NoMagic,
    /// The header does not match its checksum.
    #[error("the record's header does not match its checksum")]
    HeadChecksum,
    /// A header with fields that this program cannot understand.
    #[error("the record's {0} is beyond what this program reads")]
    Field(&'static str),
    /// The file ends within it.
    #[error("the file ends within the record")]
    Short,
    /// The stored bytes changed.
    #[error("the stored bytes of block {0} do not match their checksum")]
    StoredChecksum(BlockId),
    /// zstd failed, or gave another length.
    #[error("the stored bytes of block {0} do not decompress")]
    Decode(BlockId),
    /// The content is not what its id says.
    #[error("the content of block {0} does not match its id")]
    Id(BlockId),
    /// Another record than the one that was looked for.
    #[error("block {found} stands where block {wanted} should")]
    Other {
        /// What was looked for.
        wanted: BlockId,
        /// What is there.
        found: BlockId,
    },
}

/// Bytes that a record with this many stored bytes takes in a pack.
pub fn record_bytes(stored_len: u32) -> u64 {
    (RECORD_HEAD_BYTES as u64 + u64::from(stored_len)).next_multiple_of(ALIGN)
}

fn head_crc(repository: RepositoryId, head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&repository.0), head)
}

impl RecordHead {
    /// The header of a block from the wire.
    pub fn of_block(head: &BlockHead, stored_len: u32, origin: Origin) -> RecordHead {
        RecordHead {
            kind: RecordKind::Block,
            codec: head.codec,
            raw_len: head.raw_len,
            stored_len,
            id: head.id,
            checksum: head.checksum,
            origin,
        }
    }

    /// Its bytes.
    pub fn encode(&self, repository: RepositoryId) -> [u8; RECORD_HEAD_BYTES] {
        let mut out = Vec::with_capacity(RECORD_HEAD_BYTES);
        out.extend(RECORD_MAGIC);
        out.extend(FORMAT_VERSION.to_le_bytes());
        out.extend([self.kind.code(), codec_code(self.codec)]);
        out.extend([0; 8]); // flags, key epoch: reserved for encryption
        out.extend(self.raw_len.to_le_bytes());
        out.extend(self.stored_len.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.id.0);
        out.extend(self.checksum.0);
        out.extend(self.origin.session.0);
        out.extend(self.origin.block.to_le_bytes());
        out.extend(self.origin.task.to_le_bytes());
        out.resize(HEAD_CRC_AT, 0);
        out.extend(head_crc(repository, &out).to_le_bytes());
        let mut bytes = [0; RECORD_HEAD_BYTES];
        bytes.copy_from_slice(&out);
        bytes
    }

    /// Reads a header and checks everything that it says of itself.
    ///
    /// # Errors
    /// [`RecordFault`]; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8], repository: RepositoryId) -> Result<RecordHead, RecordFault> {
        let head = bytes.get(..RECORD_HEAD_BYTES).ok_or(RecordFault::Short)?;
        if head[..8] != RECORD_MAGIC {
            return Err(RecordFault::NoMagic);
        }
        if head[HEAD_CRC_AT..] != head_crc(repository, &head[..HEAD_CRC_AT]).to_le_bytes() {
            return Err(RecordFault::HeadChecksum);
        }
        RecordHead::fields(&head[8..]).ok_or(RecordFault::Short)?
    }

    fn fields(bytes: &[u8]) -> Option<Result<RecordHead, RecordFault>> {
        let mut fields = Fields::new(bytes);
        let version = fields.u16()?;
        let (kind, codec) = (fields.u8()?, fields.u8()?);
        let (flags, key_epoch) = (fields.u32()?, fields.u32()?);
        let (raw_len, stored_len, _) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let id = BlockId(fields.array()?);
        let checksum = StoredChecksum(fields.array()?);
        let session = SessionId(fields.array()?);
        let (block, task) = (fields.u64()?, fields.u16()?);
        let head = || {
            let beyond = |what| Err(RecordFault::Field(what));
            if version != FORMAT_VERSION {
                return beyond("format version");
            }
            if flags != 0 || key_epoch != 0 {
                return beyond("encryption");
            }
            let kind = RecordKind::from_code(kind).ok_or(RecordFault::Field("kind"))?;
            let codec = codec_from_code(codec).ok_or(RecordFault::Field("codec"))?;
            if raw_len == 0 || raw_len > limits::BLOCK_BYTES_MAX {
                return beyond("raw length");
            }
            let raw_as_is = codec != Codec::Raw || stored_len == raw_len;
            if stored_len == 0 || stored_len > raw_len || !raw_as_is {
                return beyond("stored length");
            }
            let origin = Origin { session, task, block };
            Ok(RecordHead { kind, codec, raw_len, stored_len, id, checksum, origin })
        };
        Some(head())
    }

    /// Bytes that the record takes in a pack.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.stored_len)
    }

    /// Checks the stored bytes against their checksum; needs no key.
    ///
    /// # Errors
    /// [`RecordFault::StoredChecksum`].
    pub fn check_stored(&self, stored: &[u8]) -> Result<(), RecordFault> {
        match StoredChecksum::of(stored) == self.checksum {
            true => Ok(()),
            false => Err(RecordFault::StoredChecksum(self.id)),
        }
    }

    /// What a reader on the wire must know of it.
    pub fn block_head(&self) -> BlockHead {
        BlockHead { id: self.id, codec: self.codec, raw_len: self.raw_len, checksum: self.checksum }
    }
}

/// Decodes stored bytes and checks content against ids; keeps its zstd context.
pub struct RecordDecoder {
    zstd: DCtx<'static>,
    /// For blocks and for nodes; without them ids are not checked.
    keys: Option<(IdKey, IdKey)>,
    raw: Vec<u8>,
}

impl std::fmt::Debug for RecordDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecordDecoder")
    }
}

impl RecordDecoder {
    /// For the repository with this id key.
    pub fn new(id_key: IdKey) -> RecordDecoder {
        let keys = Some((id_key, id_key.node_key()));
        RecordDecoder { zstd: DCtx::create(), keys, raw: Vec::new() }
    }

    /// One that goes by stored checksums alone, where the id key is not to be touched.
    pub fn without_key() -> RecordDecoder {
        RecordDecoder { zstd: DCtx::create(), keys: None, raw: Vec::new() }
    }

    /// The raw bytes of a record, found to match its stored checksum and (with the key) its id.
    ///
    /// # Errors
    /// [`RecordFault`].
    pub fn raw(&mut self, head: &RecordHead, stored: &[u8]) -> Result<&[u8], RecordFault> {
        head.check_stored(stored)?;
        self.raw.resize(head.raw_len as usize, 0);
        match head.codec {
            Codec::Raw if stored.len() == self.raw.len() => self.raw.copy_from_slice(stored),
            Codec::Raw => return Err(RecordFault::Decode(head.id)),
            Codec::Zstd => match self.zstd.decompress(self.raw.as_mut_slice(), stored) {
                Ok(len) if len == self.raw.len() => {}
                _ => return Err(RecordFault::Decode(head.id)),
            },
        }
        let is_right = self.keys.is_none_or(|(block_key, node_key)| {
            let key = match head.kind {
                RecordKind::Block => block_key,
                RecordKind::Node => node_key,
            };
            key.block_id(&self.raw) == head.id
        });
        if is_right { Ok(&self.raw) } else { Err(RecordFault::Id(head.id)) }
    }
}

/// Splits a whole record into its head and its stored bytes, and checks that it is the wanted one
/// and that the stored bytes are intact.
///
/// # Errors
/// [`RecordFault`].
pub fn open_record<'a>(
    bytes: &'a [u8],
    repository: RepositoryId,
    wanted: &BlockId,
) -> Result<(RecordHead, &'a [u8]), RecordFault> {
    let head = RecordHead::decode(bytes, repository)?;
    if head.id != *wanted {
        return Err(RecordFault::Other { wanted: *wanted, found: head.id });
    }
    let end = RECORD_HEAD_BYTES + head.stored_len as usize;
    let stored = bytes.get(RECORD_HEAD_BYTES..end).ok_or(RecordFault::Short)?;
    head.check_stored(stored)?;
    Ok((head, stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(key: &IdKey) -> (RecordHead, Vec<u8>) {
        let raw = vec![5; 9000];
        let mut stored = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
        zstd_safe::compress(&mut stored, &raw, 1).unwrap();
        let head = RecordHead {
            kind: RecordKind::Block,
            codec: Codec::Zstd,
            raw_len: raw.len() as u32,
            stored_len: stored.len() as u32,
            id: key.block_id(&raw),
            checksum: StoredChecksum::of(&stored),
            origin: Origin { session: SessionId([1; 16]), task: 3, block: 77 },
        };
        (head, stored)
    }

    #[test]
    fn a_record_comes_back_and_any_flipped_bit_is_found() {
        let (key, repository) = (IdKey([3; 32]), RepositoryId([9; 16]));
        let (head, stored) = sample(&key);
        let mut bytes = head.encode(repository).to_vec();
        bytes.extend(&stored);
        let (again, body) = open_record(&bytes, repository, &head.id).unwrap();
        assert_eq!((again, body), (head, stored.as_slice()));
        let mut decoder = RecordDecoder::new(key);
        assert_eq!(decoder.raw(&head, &stored).unwrap(), vec![5; 9000]);
        for at in 0..bytes.len() {
            bytes[at] ^= 1 << (at % 8);
            assert!(open_record(&bytes, repository, &head.id).is_err(), "byte {at}");
            bytes[at] ^= 1 << (at % 8);
        }
        assert!(open_record(&bytes, RepositoryId([8; 16]), &head.id).is_err());
    }

    #[test]
    fn content_under_a_wrong_id_is_refused() {
        let key = IdKey([3; 32]);
        let (mut head, stored) = sample(&key);
        head.id = BlockId([1; 32]);
        assert_eq!(RecordDecoder::new(key).raw(&head, &stored), Err(RecordFault::Id(head.id)));
        let (mut node, stored) = sample(&key);
        node.kind = RecordKind::Node;
        assert_eq!(RecordDecoder::new(key).raw(&node, &stored), Err(RecordFault::Id(node.id)));
        let (mut longer, stored) = sample(&key);
        longer.raw_len += 1;
        assert_eq!(
            RecordDecoder::new(key).raw(&longer, &stored),
            Err(RecordFault::Decode(longer.id))
        );
    }

    #[test]
    fn random_heads_never_panic() {
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes: Vec<u8> = (0..random.usize(0..200)).map(|_| random.u8(..)).collect();
            if bytes.len() >= 128 {
                bytes[..8].copy_from_slice(&RECORD_MAGIC);
                let crc = head_crc(RepositoryId([0; 16]), &bytes[..HEAD_CRC_AT]);
                bytes[HEAD_CRC_AT..128].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = open_record(&bytes, RepositoryId([0; 16]), &BlockId::ZERO);
        }
    }
}
