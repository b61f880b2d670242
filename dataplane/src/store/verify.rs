//! Reading a repository in full, or a part of it: is every byte that a restore would need what was
//! written?
//!
//! In: a reader. Out: what is damaged, by file, pack and offset, and which points, disks and blocks
//! it hits. Packs are read once, from end to end, in large pieces; it may run beside a serving
//! store, and what a collection takes away meanwhile is no damage. Where the index is writable,
//! what was found is remembered: damaged records are no longer answered as known. Only a
//! verification of everything, by ids, ends the suspicion that more is damaged. Must not: repair
//! anything.

use std::collections::HashSet;
use std::ops::ControlFlow;

use gantry_common::ids::BlockId;
use gantry_common::manage::{VerifyOptions, VerifyReport};

use super::error::StoreError;
use super::layout::PackNumber;
use super::reader::StoreReader;
use super::record::RecordDecoder;
use super::storage::Storage;

mod pace;
mod packs;
mod recheck;
mod structures;
mod trees;

use self::pace::Pace;
use self::recheck::Wrong;
pub(super) use self::recheck::index_differences;
pub(super) use self::trees::hits_of_point;

/// Told now and then: bytes read, bytes that will be read. Its answer may stop the verification.
pub type OnProgress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// Damaged records whose places are remembered; beyond, only the index's marks tell the trees.
const BAD_REMEMBERED_MAX: usize = 4 << 20;

struct Verifier<'a, S: Storage> {
    reader: &'a StoreReader<S>,
    options: &'a VerifyOptions,
    now_ms: u64,
    decoder: RecordDecoder,
    report: VerifyReport,
    bad: HashSet<(PackNumber, u64)>,
    /// Ids of damaged records for which the index names no good place.
    unresolved: HashSet<BlockId>,
    wrong: Vec<Wrong>,
    /// Records that were remembered as damaged, and are not.
    found_whole: u64,
    pace: Pace<'a>,
}

/// Verifies the repository, or the share of it that was not read for the longest time.
///
/// # Errors
/// Only if the folder or the index fails; damage is in the report.
pub fn verify<S: Storage>(
    reader: &StoreReader<S>,
    options: &VerifyOptions,
    now_ms: u64,
    on_progress: &mut OnProgress<'_>,
) -> Result<VerifyReport, StoreError> {
    let chosen = packs::choose(&reader.repo().packs(), options.percent);
    let total = chosen.iter().map(|(_, bytes)| bytes).sum();
    let mut verifier = Verifier {
        reader,
        options,
        now_ms,
        decoder: match options.checksums_only {
            true => RecordDecoder::without_key(),
            false => RecordDecoder::new(reader.id_key()),
        },
        report: VerifyReport { complete: options.percent >= 100, ..VerifyReport::default() },
        bad: HashSet::new(),
        unresolved: HashSet::new(),
        wrong: Vec::new(),
        found_whole: 0,
        pace: Pace::new(options.rate, total, on_progress),
    };
    verifier.structures()?;
    for (pack, _) in chosen {
        verifier.pack(pack)?;
        if verifier.pace.is_stopped {
            break;
        }
    }
    verifier.offer_copies();
    verifier.trees()?;
    verifier.recheck()?;
    let mut report = verifier.report;
    if verifier.found_whole > 0 {
        let note = "records that were remembered as damaged were found whole";
        report.notes.push(format!("{} {note}", verifier.found_whole));
    }
    if verifier.pace.is_stopped {
        report.complete = false;
        report.notes.push("it was stopped before its end: what was not read is not known".into());
    }
    Ok(report)
}
