//! A corpus that takes little space: the second version kept as its difference from the first.
//!
//! In: a complete corpus. Out: `NAME.v2.delta` (the bytes of the changed extents, in order) in
//! place of `NAME.v2.raw`, or the way back, checked against the hash in `corpus.json`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gantry_common::extents::Extent;

use super::describe::{Corpus, Image};
use super::sparse;

fn delta(folder: &Path, image: &Image) -> PathBuf {
    folder.join(format!("{}.v2.delta", image.name))
}

fn extents(folder: &Path, image: &Image) -> Result<Vec<Extent>> {
    let text = std::fs::read_to_string(folder.join(&image.changed.path))?;
    Ok(serde_json::from_str(&text)?)
}

/// Replaces every second version by its difference.
///
/// # Errors
/// When reading or writing fails; the second version is then still there.
pub fn pack(folder: &Path, corpus: &Corpus) -> Result<()> {
    for image in &corpus.images {
        let second = folder.join(&image.versions[1].path);
        if !second.exists() {
            continue;
        }
        let source = sparse::open(&second)?;
        let temporary = folder.join("delta.tmp");
        let mut target = BufWriter::new(File::create(&temporary)?);
        let mut buffer = Vec::new();
        for extent in extents(folder, image)? {
            buffer.resize(usize::try_from(extent.length)?, 0);
            source.read_exact_at(&mut buffer, extent.start)?;
            target.write_all(&buffer)?;
        }
        target.into_inner().context("writing the difference")?.sync_all()?;
        std::fs::rename(&temporary, delta(folder, image))?;
        std::fs::remove_file(&second)?;
    }
    Ok(())
}

/// Makes every second version that is kept as a difference whole again.
///
/// # Errors
/// When reading or writing fails or the result is not what was packed.
pub fn unpack(folder: &Path, corpus: &Corpus) -> Result<()> {
    for image in &corpus.images {
        let second = folder.join(&image.versions[1].path);
        if second.exists() {
            continue;
        }
        println!("    making {} from its difference", second.display());
        let temporary = folder.join("v2.tmp");
        sparse::copy_sparse(&folder.join(&image.versions[0].path), &temporary)?;
        let target = sparse::open_write(&temporary)?;
        let mut source = BufReader::new(sparse::open(&delta(folder, image))?);
        let mut buffer = Vec::new();
        for extent in extents(folder, image)? {
            buffer.resize(usize::try_from(extent.length)?, 0);
            source.read_exact(&mut buffer)?;
            target.write_all_at(&buffer, extent.start)?;
        }
        let found = sparse::figures(&temporary)?.blake3;
        ensure!(found == image.versions[1].blake3, "{} is damaged", delta(folder, image).display());
        std::fs::rename(&temporary, &second)?;
    }
    Ok(())
}
