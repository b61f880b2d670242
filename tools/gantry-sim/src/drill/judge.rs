//! Judges restored images: what a watched disk held at a snapshot is remembered as hashes.
//!
//! In: a machine, a disk's position, an image's path, a snapshot (the newest when not named). Out:
//! where they differ. Invariant: the image is only read.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::effect::disks_of;
use crate::sim::Sim;
use crate::storage::{DiskId, SnapshotId};

/// Differences that are listed.
const DIFFERENCES_MAX: usize = 10;

/// A question about watched disks.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    /// Whether an image is what a disk held.
    Compare {
        /// The machine's name.
        machine: String,
        /// The disk's position, from 0.
        #[serde(default)]
        disk: usize,
        /// Raw image, a path of this machine.
        image: PathBuf,
        /// At which snapshot; the newest when absent.
        snapshot: Option<u64>,
    },
    /// Which snapshots there are now.
    OpenSnapshots {},
    /// Which snapshots of a machine's disk are remembered.
    Snapshots {
        /// The machine's name.
        machine: String,
        /// The disk's position, from 0.
        #[serde(default)]
        disk: usize,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of a comparison.
    Compared {
        /// With the disk at this snapshot.
        snapshot: u64,
        /// The disk's size in bytes.
        bytes: u64,
        /// First bytes of blocks of 64 KiB that differ, some of them; none: the same bit for bit.
        differences: Vec<u64>,
    },
    /// What is remembered, the oldest first.
    Snapshots {
        /// Their numbers.
        snapshots: Vec<u64>,
    },
}

/// Answers a question. Blocks while it reads.
///
/// # Errors
/// There is no such machine, disk or image, or nothing is remembered of it.
pub fn judge(sim: &Sim, question: &Question) -> Result<Answer> {
    let numbers = |ids: Vec<SnapshotId>| Answer::Snapshots {
        snapshots: ids.into_iter().map(|id| id.0).collect(),
    };
    let (machine, disk) = match question {
        Question::Compare { machine, disk, .. } | Question::Snapshots { machine, disk } => {
            (machine, disk)
        }
        Question::OpenSnapshots {} => return Ok(numbers(sim.storage.snapshots())),
    };
    let id = disk_of(sim, machine, *disk)?;
    let known = sim.storage.remembered(id)?;
    let Question::Compare { image, snapshot, .. } = question else {
        return Ok(numbers(known));
    };
    let snapshot = snapshot.map(SnapshotId).or(known.last().copied());
    let snapshot = snapshot.with_context(|| {
        format!("nothing is remembered of disk {disk} of {machine}: watch the machine first")
    })?;
    let oracle = sim.storage.oracle(snapshot, id)?;
    let file = std::fs::File::open(image).with_context(|| image.display().to_string())?;
    let differences = oracle.differences(std::io::BufReader::new(file), DIFFERENCES_MAX)?;
    Ok(Answer::Compared { snapshot: snapshot.0, bytes: oracle.capacity_bytes, differences })
}

fn disk_of(sim: &Sim, machine: &str, position: usize) -> Result<DiskId> {
    let disks = disks_of(sim, Some(machine))?;
    let found = disks.into_iter().flatten().nth(position);
    found.with_context(|| format!("{machine} has no disk {position}"))
}
