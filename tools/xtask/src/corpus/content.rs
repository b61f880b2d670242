//! Real content: this machine's own programs, libraries and documents.
//!
//! In: folders and a seed. Out: a list of files in an order that the seed alone decides (on the
//! same machine), and pages that look like the memory of processes. Reads system folders and tool
//! caches only, never a person's documents or settings.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Bytes of a page of memory.
pub const PAGE: usize = 4096;
/// Pages that came from one place lie together in runs of so many bytes.
const RUN: usize = 16 * PAGE;

/// A file of this machine that goes into an image.
#[derive(Debug, Clone)]
pub struct HostFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size when it was listed.
    pub bytes: u64,
}

/// Files in seeded order, handed out once each.
pub struct HostFiles {
    files: Vec<HostFile>,
}

/// System folders first, then tool chains and package caches, where a machine has them.
pub fn usual_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["/usr", "/opt"].map(PathBuf::from).into();
    if let Some(home) = std::env::home_dir() {
        let caches = [
            ".rustup/toolchains",
            ".cargo/registry/cache",
            ".cargo/registry/src",
            ".pyenv/versions",
        ];
        folders.extend(caches.map(|cache| home.join(cache)));
    }
    folders
}

impl HostFiles {
    /// Lists the regular files below `folders`, once each, and shuffles them by `seed`.
    ///
    /// # Errors
    /// When there is nothing at all.
    pub fn list(folders: &[PathBuf], seed: u64) -> Result<HostFiles> {
        let mut files = Vec::new();
        for folder in folders {
            walk(folder, &mut files);
        }
        ensure!(!files.is_empty(), "no readable files below {folders:?}");
        fastrand::Rng::with_seed(seed).shuffle(&mut files);
        Ok(HostFiles { files })
    }

    /// Takes files of a size within `bounds` until they hold `budget` bytes or there are no more.
    pub fn take(&mut self, bounds: std::ops::RangeInclusive<u64>, budget: u64) -> Vec<HostFile> {
        let (mut taken, mut kept, mut sum) = (Vec::new(), Vec::new(), 0);
        for file in std::mem::take(&mut self.files) {
            if bounds.contains(&file.bytes) && sum + file.bytes <= budget {
                sum += file.bytes;
                taken.push(file);
            } else {
                kept.push(file);
            }
        }
        self.files = kept;
        taken
    }

    /// Half the budget in files of 1 to 16 MiB, the rest in small ones: a system disk's mixture.
    pub fn mixture(&mut self, budget: u64) -> Vec<HostFile> {
        let mut files = self.take(1 << 20..=16 << 20, budget / 2);
        files.extend(self.take(1..=256 << 10, budget / 2));
        files
    }
}

/// Names that every tool we use can take on a command line or in a script.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-@".contains(&b))
}

fn walk(folder: &Path, files: &mut Vec<HostFile>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let (Some(name), Ok(kind)) = (name.to_str(), entry.file_type()) else { continue };
        if !is_plain(name) {
            continue;
        }
        if kind.is_dir() {
            walk(&entry.path(), files);
        } else if kind.is_file()
            && let Ok(facts) = entry.metadata()
            && facts.len() > 0
        {
            files.push(HostFile { path: entry.path(), bytes: facts.len() });
        }
    }
}

/// Pages as swap and page files hold them: pieces of programs, one in six empty.
pub struct MemoryPages {
    sources: Vec<(File, u64)>,
    random: fastrand::Rng,
}

impl MemoryPages {
    /// Draws from these files.
    ///
    /// # Errors
    /// When none of them opens.
    pub fn new(files: &[HostFile], seed: u64) -> Result<MemoryPages> {
        // Programs and libraries, not scripts: only files that hold several runs of pages.
        let sources: Vec<(File, u64)> = files
            .iter()
            .filter(|file| file.bytes >= 4 * RUN as u64)
            .filter_map(|file| Some((File::open(&file.path).ok()?, file.bytes)))
            .take(200)
            .collect();
        ensure!(!sources.is_empty(), "no file to take memory pages from");
        Ok(MemoryPages { sources, random: fastrand::Rng::with_seed(seed) })
    }

    /// Fills whole pages; an unreadable place stays as it was.
    pub fn fill(&mut self, pages: &mut [u8]) {
        for run in pages.chunks_mut(RUN) {
            let (file, bytes) = &self.sources[self.random.usize(0..self.sources.len())];
            let page = PAGE as u64;
            let at = self.random.u64(0..=(bytes - RUN as u64) / page) * page;
            let _ = file.read_at(run, at);
            for page in run.chunks_mut(PAGE) {
                if self.random.u8(0..6) == 0 {
                    page.fill(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HostFiles, MemoryPages, PAGE};

    #[test]
    fn the_seed_decides_the_order_and_no_file_is_taken_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        for number in 0..40_usize {
            let path = folder.path().join(format!("f{number}"));
            std::fs::write(path, vec![1; 100 + number]).expect("written");
        }
        let folders = [folder.path().to_owned()];
        let list = |seed| HostFiles::list(&folders, seed).expect("listed");
        let names = |seed| -> Vec<_> {
            list(seed).take(0..=u64::MAX, 1000).into_iter().map(|f| f.path).collect()
        };
        assert_eq!(names(1), names(1));
        assert_ne!(names(1), names(2));
        let mut files = list(3);
        let first = files.take(0..=120, u64::MAX);
        assert_eq!(first.len(), 21);
        assert_eq!(files.take(0..=u64::MAX, u64::MAX).len(), 19);
    }

    #[test]
    fn memory_pages_come_from_files_and_partly_are_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("program"), vec![9; 100 * PAGE]).expect("written");
        let mut files = HostFiles::list(&[folder.path().to_owned()], 1).expect("listed");
        let files = files.take(0..=u64::MAX, u64::MAX);
        let mut pages = vec![0; 256 * PAGE];
        MemoryPages::new(&files, 5).expect("pages").fill(&mut pages);
        let empty = pages.chunks(PAGE).filter(|page| page[0] == 0).count();
        assert!((1..255).contains(&empty), "{empty}");
    }
}
