//! Stored blocks: the sample compressed, as it goes over the wire and into packs.
//!
//! In: a sample. Out: [`Stored`] blocks, made outside of any measurement.

use anyhow::Result;
use bytes::Bytes;
use gantry_common::ids::{BlockId, StoredChecksum};
use gantry_common::units::Compression;
use gantry_common::wire::BlockHead;
use gantry_dataplane::compress::Compressor;

use crate::blocks::Sample;
use crate::measure::Stopwatch;

/// A block as the wire and the packs have it.
pub(super) struct Stored {
    /// Its head; id and checksum are no real ones.
    pub(super) head: BlockHead,
    /// Its bytes.
    pub(super) bytes: Bytes,
}

/// Compresses as much of the sample as goes in `seconds_max`; at least one block.
pub(super) fn compress(
    sample: &Sample,
    level: Compression,
    seconds_max: f64,
) -> Result<Vec<Stored>> {
    let stopwatch = Stopwatch::start();
    let mut compressor = Compressor::new(level)?;
    let mut all = Vec::new();
    let mut out = Vec::new();
    for raw in sample.blocks() {
        out.resize(raw.len(), 0);
        let compressed = compressor.compress(raw, &mut out);
        let bytes = Bytes::copy_from_slice(&out[..compressed.len]);
        let head = BlockHead {
            id: BlockId([1; 32]),
            codec: compressed.codec,
            raw_len: u32::try_from(raw.len())?,
            checksum: StoredChecksum([0; 16]),
        };
        all.push(Stored { head, bytes });
        if stopwatch.wall_seconds() > seconds_max {
            break;
        }
    }
    Ok(all)
}
