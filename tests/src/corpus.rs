//! The corpus of real disk images, as scenarios use it.
//!
//! In: the folder that GANTRY_CORPUS names (`cargo xtask test` sets it; `cargo xtask corpus` builds
//! it). Out: its images. Never writes to one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// One disk in two versions.
#[derive(Debug, Clone)]
pub struct Image {
    /// `linux`, `windows`, `xfs` or `mixed-tail`.
    pub name: String,
    /// Version 1.
    pub first: PathBuf,
    /// Version 2, of the same size.
    pub second: PathBuf,
    /// JSON list of the extents in which they differ, at 64 KiB granularity.
    pub changed: PathBuf,
    /// A fully allocated copy of version 1, where there is one.
    pub full: Option<PathBuf>,
    /// Bytes of the disk.
    pub virtual_bytes: u64,
}

/// Every image; none when the environment names no corpus (a plain `cargo test`).
///
/// # Errors
/// When the folder it names is no corpus.
pub fn images() -> Result<Vec<Image>> {
    let Some(folder) = std::env::var_os("GANTRY_CORPUS").map(PathBuf::from) else {
        eprintln!("GANTRY_CORPUS is not set: cargo xtask test uses real images");
        return Ok(Vec::new());
    };
    let file = folder.join("corpus.json");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let corpus: Value = serde_json::from_str(&text)?;
    let list = corpus["images"].as_array().context("corpus.json lists no images")?;
    list.iter().map(|image| parse(&folder, image).context("corpus.json")).collect()
}

impl Image {
    /// Version 1 and version 2.
    pub fn versions(&self) -> [&Path; 2] {
        [&self.first, &self.second]
    }
}

fn parse(folder: &Path, image: &Value) -> Option<Image> {
    let path = |value: &Value| value.as_str().map(|name| folder.join(name));
    Some(Image {
        name: image["name"].as_str()?.to_owned(),
        first: path(&image["versions"][0]["path"])?,
        second: path(&image["versions"][1]["path"])?,
        changed: path(&image["changed"]["path"])?,
        full: path(&image["full_path"]),
        virtual_bytes: image["virtual_bytes"].as_u64()?,
    })
}
