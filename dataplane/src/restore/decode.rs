//! Restore, stage 2 of 3: stored bytes in, the block's raw bytes out, proven to be what they claim.
//!
//! In: a head and stored bytes from a peer that need not be honest. Out: raw bytes in the caller's
//! buffer. Invariant: never writes beyond the raw length that the disk's shape allows; what passes
//! matches its id under the repository's key. Must not: allocate per block.

use std::time::Instant;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::IdKey;
use gantry_common::wire::BlockHead;

use super::report::{Stage, Stats};
use crate::compress::{CompressError, DecompressError, Decompressor};

/// What is wrong with a block that came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    /// The head announces another length than the block has.
    #[error("it has {found} bytes where the disk has {wanted}")]
    Length {
        /// Of the disk's block.
        wanted: u32,
        /// Announced.
        found: u32,
    },
    /// The stored bytes are not what the head says.
    #[error(transparent)]
    Stored(#[from] DecompressError),
    /// The content is not what the id says.
    #[error("its content does not match its id")]
    Id,
}

/// A block that did not pass, for a person. `label` names VM, point and disk.
pub(super) fn bad_block(block: u64, label: &str, why: DecodeError) -> Failure {
    let text = format!("block {block} of {label} is refused: {why}; run repo verify there");
    Failure::new(FailureKind::Target, text)
}

/// One thread's decompression context and the repository's key.
pub(super) struct BlockDecoder {
    decompressor: Decompressor,
    id_key: IdKey,
}

impl BlockDecoder {
    /// For the repository with this id key.
    pub(super) fn new(id_key: IdKey) -> Result<BlockDecoder, CompressError> {
        Ok(BlockDecoder { decompressor: Decompressor::new()?, id_key })
    }

    /// Decodes into the first `len` bytes of `out` (the block's length on this disk) and checks
    /// them.
    pub(super) fn decode(
        &mut self,
        head: &BlockHead,
        stored: &[u8],
        out: &mut [u8],
        len: u32,
        stats: &mut Stats,
    ) -> Result<(), DecodeError> {
        let wrong = DecodeError::Length { wanted: len, found: head.raw_len };
        let raw = out.get_mut(..len as usize).filter(|_| head.raw_len == len).ok_or(wrong)?;
        let begin = Instant::now();
        self.decompressor.decompress(head, stored, raw)?;
        let decoded = Instant::now();
        let found = self.id_key.block_id(raw);
        stats.record(Stage::Decompress, stored.len() as u64, decoded - begin);
        stats.record(Stage::Verify, u64::from(len), decoded.elapsed());
        if found == head.id { Ok(()) } else { Err(DecodeError::Id) }
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockDecoder, DecodeError};
    use crate::restore::report::Stats;
    use gantry_common::ids::{BlockId, IdKey, StoredChecksum};
    use gantry_common::wire::{BlockHead, Codec};

    #[test]
    fn only_what_matches_length_and_id_passes() {
        let key = IdKey([9; 32]);
        let raw = vec![7u8; 5000];
        let mut stored = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
        zstd_safe::compress(&mut stored, &raw, 1).unwrap();
        let head = BlockHead {
            id: key.block_id(&raw),
            codec: Codec::Zstd,
            raw_len: 5000,
            checksum: StoredChecksum([0; 16]),
        };
        let mut decoder = BlockDecoder::new(key).unwrap();
        let mut out = vec![1u8; 6000];
        let mut try_with = |head: &BlockHead, stored: &[u8], len| {
            let result = decoder.decode(head, stored, &mut out, len, &mut Stats::default());
            (result, out[len.min(6000) as usize..].iter().all(|&byte| byte == 1))
        };
        assert_eq!(try_with(&head, &stored, 5000), (Ok(()), true));
        let wrong = DecodeError::Length { wanted: 4999, found: 5000 };
        assert_eq!(try_with(&head, &stored, 4999).0, Err(wrong));
        let short = BlockHead { raw_len: 4999, ..head };
        assert!(matches!(try_with(&short, &stored, 4999).0, Err(DecodeError::Stored(_))));
        let other = BlockHead { id: BlockId([1; 32]), ..head };
        assert_eq!(try_with(&other, &stored, 5000), (Err(DecodeError::Id), true));
        let (result, untouched) = try_with(&head, &stored[..9], 5000);
        assert!(matches!(result, Err(DecodeError::Stored(_))) && untouched);
        let as_is = BlockHead { codec: Codec::Raw, ..head };
        assert_eq!(try_with(&as_is, &raw, 5000), (Ok(()), true));
        assert!(try_with(&as_is, &raw[1..], 5000).0.is_err());
    }
}
