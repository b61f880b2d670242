//! `corpus.json`: what the images are, for tests, benchmarks and people.
//!
//! In: finished images. Out: their description. The file is written last, so it is also the mark
//! that a corpus is complete.

use std::path::Path;

use anyhow::{Context, Result};
use gantry_common::extents::Extent;
use serde::{Deserialize, Serialize};

use super::layout::MIB;
use super::sparse::{self, CHANGE_BYTES};

/// The description's file name.
pub const FILE_NAME: &str = "corpus.json";
/// Changes with everything that makes old images useless.
pub const STAMP: &str = "gantry-corpus-1";

/// A whole corpus.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Corpus {
    /// [`STAMP`] of the builder.
    pub stamp: String,
    /// `small` or `large`.
    pub size: String,
    /// What the random choices followed.
    pub seed: u64,
    /// The images.
    pub images: Vec<Image>,
}

/// One image in its two versions; all paths are relative to the corpus.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// `linux`, `windows`, …
    pub name: String,
    /// Size of the disk.
    pub virtual_bytes: u64,
    /// How used swap came to be, if it has any: `kernel` or `written`.
    pub swap: Option<String>,
    /// Version 1, then version 2.
    pub versions: Vec<Version>,
    /// What differs between them.
    pub changed: Changed,
    /// A fully allocated copy of version 1, if there is one.
    pub full_path: Option<String>,
}

/// One version of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Version {
    /// The image file.
    pub path: String,
    /// What it takes on disk.
    pub allocated_bytes: u64,
    /// Bytes in 1 MiB blocks that hold something.
    pub nonzero_block_bytes: u64,
    /// Bytes in 4 KiB pages that hold something.
    pub nonzero_page_bytes: u64,
    /// BLAKE3-256 of the whole content.
    pub blake3: String,
}

/// The difference of two versions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Changed {
    /// The list of extents: `[{"start": …, "length": …}, …]`.
    pub path: String,
    /// Entries in it.
    pub extents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Changed 64 KiB blocks.
    pub blocks_64k: u64,
    /// 1 MiB blocks with a change.
    pub blocks_1m: u64,
}

/// Describes `NAME.raw` and `NAME.v2.raw` in `folder`, and writes `NAME.changed.json`.
///
/// # Errors
/// When reading an image or writing the list fails.
pub fn image(folder: &Path, name: &str, swap: Option<&str>) -> Result<Image> {
    let paths = [format!("{name}.raw"), format!("{name}.v2.raw")];
    let [before, after] = [folder.join(&paths[0]), folder.join(&paths[1])];
    let extents = sparse::changed_extents(&before, &after)?;
    let changed = changed(folder, name, &extents)?;
    let mut versions = Vec::new();
    for path in paths {
        let figures = sparse::figures(&folder.join(&path))?;
        versions.push(Version {
            path,
            allocated_bytes: figures.allocated_bytes,
            nonzero_block_bytes: figures.nonzero_block_bytes,
            nonzero_page_bytes: figures.nonzero_page_bytes,
            blake3: figures.blake3,
        });
    }
    let full_path = format!("{name}.full.raw");
    Ok(Image {
        name: name.to_owned(),
        virtual_bytes: std::fs::metadata(before)?.len(),
        swap: swap.map(str::to_owned),
        versions,
        changed,
        full_path: folder.join(&full_path).exists().then_some(full_path),
    })
}

fn changed(folder: &Path, name: &str, extents: &[Extent]) -> Result<Changed> {
    let path = format!("{name}.changed.json");
    std::fs::write(folder.join(&path), serde_json::to_string(extents)?)?;
    let mut blocks: Vec<u64> = extents
        .iter()
        .flat_map(|extent| extent.start / MIB..(extent.start + extent.length).div_ceil(MIB))
        .collect();
    blocks.dedup();
    Ok(Changed {
        path,
        extents: extents.len() as u64,
        bytes: extents.iter().map(|extent| extent.length).sum(),
        blocks_64k: extents.iter().map(|extent| extent.length.div_ceil(CHANGE_BYTES)).sum(),
        blocks_1m: blocks.len() as u64,
    })
}

/// Reads a corpus's description; nothing when the folder holds none of our stamp.
pub fn read(folder: &Path) -> Option<Corpus> {
    let text = std::fs::read_to_string(folder.join(FILE_NAME)).ok()?;
    let corpus: Corpus = serde_json::from_str(&text).ok()?;
    (corpus.stamp == STAMP).then_some(corpus)
}

/// Writes the description.
///
/// # Errors
/// When the folder is not writable.
pub fn write(folder: &Path, corpus: &Corpus) -> Result<()> {
    let path = folder.join(FILE_NAME);
    let text = serde_json::to_string_pretty(corpus)?;
    std::fs::write(&path, text + "\n").with_context(|| path.display().to_string())
}

/// Prints one line an image.
pub fn print(corpus: &Corpus) {
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    for image in &corpus.images {
        let (one, changed) = (&image.versions[0], &image.changed);
        println!(
            "    {:<11} {:>8.1} MiB disk, {:>7.1} MiB in non-zero 1 MiB blocks; changed: {} extents, \
             {:.1} MiB, {} blocks of 1 MiB; swap: {}",
            image.name,
            mib(image.virtual_bytes),
            mib(one.nonzero_block_bytes),
            changed.extents,
            mib(changed.bytes),
            changed.blocks_1m,
            image.swap.as_deref().unwrap_or("none"),
        );
    }
}
