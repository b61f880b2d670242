//! What the tests of file systems' readers have in common: sets of ranges, masks, disks that are spoilt.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use gantry_guest::{Disk, Extent, FileMasks, FileRange, GuestFs, Refused};

/// Sorted and joined.
pub fn joined(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.sort_unstable();
    let mut out: Vec<Extent> = Vec::new();
    for extent in extents.into_iter().filter(|extent| extent.length > 0) {
        match out.last_mut() {
            Some(last) if last.start + last.length >= extent.start => {
                let end = (last.start + last.length).max(extent.start + extent.length);
                last.length = end - last.start;
            }
            _ => out.push(extent),
        }
    }
    out
}

/// Bytes of both; both sorted and joined.
pub fn common_bytes(one: &[Extent], two: &[Extent]) -> u64 {
    let (mut i, mut j, mut sum) = (0, 0, 0);
    while i < one.len() && j < two.len() {
        let from = one[i].start.max(two[j].start);
        let (end_one, end_two) = (one[i].start + one[i].length, two[j].start + two[j].length);
        sum += end_one.min(end_two).saturating_sub(from);
        if end_one < end_two { i += 1 } else { j += 1 }
    }
    sum
}

/// All bytes.
pub fn bytes(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.length).sum()
}

/// Without runs that are not worth a note.
pub fn worth_it(extents: &[Extent]) -> Vec<Extent> {
    extents.iter().copied().filter(|extent| extent.length >= 16 << 10).collect()
}

/// What a reader calls free, sorted and joined; must not overlap.
pub fn free_of(fs: &dyn GuestFs) -> Result<Vec<Extent>, Refused> {
    let mut found = Vec::new();
    fs.free(&mut |extent| found.push(extent))?;
    let all = bytes(&found);
    let found = joined(found);
    assert_eq!(all, bytes(&found), "free ranges overlap");
    Ok(found)
}

/// What a reader says is in use.
pub fn in_use_of(fs: &dyn GuestFs, seed: u64) -> Vec<Extent> {
    let mut found = Vec::new();
    fs.in_use(seed, &mut |extent| found.push(extent)).unwrap();
    joined(found)
}

/// Files whose path ends so.
pub struct Ends(pub &'static str);

impl FileMasks for Ends {
    fn excludes(&self, path: &str) -> bool {
        path.ends_with(self.0)
    }

    fn may_exclude_beneath(&self, _folder: &str) -> bool {
        true
    }
}

/// Ranges by path, and why others are left out.
pub type Files = (BTreeMap<String, Vec<FileRange>>, BTreeMap<String, String>);

/// Files that masks exclude.
pub fn excluded_of(fs: &dyn GuestFs, masks: &dyn FileMasks) -> Files {
    gather(|give, out| fs.excluded_files(masks, give, out))
}

/// Swap, page and hibernation files.
pub fn system_of(fs: &dyn GuestFs) -> Files {
    gather(|give, out| fs.system_files(give, out))
}

type Give<'a> = &'a mut dyn FnMut(FileRange);
type LeftOut<'a> = &'a mut dyn FnMut(&str, Refused);

fn gather(ask: impl Fn(Give<'_>, LeftOut<'_>) -> Result<(), Refused>) -> Files {
    let (mut given, mut left) = (BTreeMap::<String, Vec<FileRange>>::new(), BTreeMap::new());
    let mut give = |range: FileRange| given.entry(range.path.clone()).or_default().push(range);
    ask(&mut give, &mut |path, why| {
        left.insert(path.to_owned(), why.why);
    })
    .unwrap();
    (given, left)
}

/// A file's hash of its content, by a walk; sockets and links are left out.
pub fn checksums(folder: &Path) -> BTreeMap<String, (u64, blake3::Hash)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(now) = waiting.pop() {
        for entry in std::fs::read_dir(&now).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                let content = std::fs::read(entry.path()).unwrap();
                let path = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(path, (content.len() as u64, blake3::hash(&content)));
            }
        }
    }
    found
}

/// Overwrites ranges of a file with a pattern that no file system is happy with.
pub fn spoil(path: &Path, ranges: &[Extent]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let pattern = vec![0xdb; 1 << 20];
    for range in ranges {
        let mut at = range.start;
        while at < range.start + range.length {
            let now = (range.start + range.length - at).min(pattern.len() as u64);
            file.write_all_at(&pattern[..now as usize], at).unwrap();
            at += now;
        }
    }
}

/// A disk with some bytes changed, that counts what is read and refuses to be read for ever.
pub struct Spoilt<'a> {
    /// The good one.
    pub disk: &'a dyn Disk,
    /// Pieces that stand for its own.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// Reads so far.
    pub reads: Cell<u64>,
    /// Bytes read so far.
    pub bytes: Cell<u64>,
}

impl<'a> Spoilt<'a> {
    /// The disk as it is, but for these pieces.
    pub fn new(disk: &'a dyn Disk, pieces: Vec<(u64, Vec<u8>)>) -> Spoilt<'a> {
        Spoilt { disk, pieces, reads: Cell::new(0), bytes: Cell::new(0) }
    }
}

impl Disk for Spoilt<'_> {
    fn length(&self) -> u64 {
        self.disk.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + buffer.len() as u64);
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.length());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.disk.read_at(offset, buffer)?;
        for (start, bytes) in &self.pieces {
            let (from, to) = ((*start).max(offset), (start + bytes.len() as u64).min(end));
            if from < to {
                let piece = &bytes[(from - start) as usize..(to - start) as usize];
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(piece);
            }
        }
        Ok(())
    }
}
