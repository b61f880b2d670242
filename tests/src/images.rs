//! Disk images of scenarios: the corpus where there is one, else small ones made on the spot.
//!
//! In: the corpus, seeds. Out: [`Image`]s in two versions with the list of what changed, and
//! plain disks of noise. Invariant: images of the corpus are never written.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fastrand::Rng;
use gantry_common::extents::Extent;

use crate::corpus::{self, Image};
use crate::scratch::Scratch;

/// Changes are listed at this granularity, as vSphere lists them.
pub const CHANGE_BYTES: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

/// Every image of the corpus, or three small ones made in `scratch`.
pub fn all(scratch: &Scratch) -> Vec<Image> {
    let real = corpus::images().expect("GANTRY_CORPUS names a corpus");
    if !real.is_empty() {
        return real;
    }
    let sizes = [("small", 24 * MIB), ("tail", 9 * MIB + 1536), ("tiny", 4096)];
    sizes.into_iter().map(|(name, bytes)| synthesise(scratch, name, bytes)).collect()
}

/// One image for scenarios that need just one: the corpus's mixed one, or a small one.
pub fn one(scratch: &Scratch) -> Image {
    let found = all(scratch);
    let mixed = found.iter().find(|image| image.name.starts_with("mixed"));
    mixed.or(found.first()).expect("there are images").clone()
}

/// Makes an image of `bytes` whose content follows from its name: text, noise, repeated pieces,
/// written zeros and holes; the second version has some of everything changed.
pub fn synthesise(scratch: &Scratch, name: &str, bytes: u64) -> Image {
    let mut random = Rng::with_seed(name.bytes().map(u64::from).sum());
    let [first, second] = [1, 2].map(|version| scratch.join(format!("{name}.v{version}.raw")));
    let disk = blank(&first, bytes);
    let repeated = noise(&mut random, 256 << 10);
    let mut position = 0;
    while position < bytes {
        let length = (random.u64(1..=64) * 8192).min(bytes - position) as usize;
        let piece = match random.u8(0..6) {
            0 => None,
            1 => Some(vec![0; length]),
            2 => Some(repeated.iter().copied().cycle().take(length).collect()),
            3 | 4 => Some(text(&mut random, length)),
            _ => Some(noise(&mut random, length)),
        };
        if let Some(piece) = piece {
            disk.write_all_at(&piece, position).expect("writable");
        }
        position += length as u64;
    }
    copy_sparse(&first, &second);
    let changed = change(&second, &mut random, (bytes / MIB).clamp(1, 8));
    let list = serde_json::to_string(&changed).expect("extents are JSON");
    let changed = scratch.write(&format!("{name}.changed.json"), list);
    let full = scratch.join(format!("{name}.full.raw"));
    fs::write(&full, fs::read(&first).expect("readable")).expect("writable");
    let full = Some(full);
    Image { name: name.to_owned(), first, second, changed, full, virtual_bytes: bytes }
}

/// Changes `count` places of a disk; gives the extents around them, in order.
pub fn change(path: &Path, random: &mut Rng, count: u64) -> Vec<Extent> {
    let disk = File::options().write(true).open(path).expect("an image");
    let bytes = disk.metadata().expect("an image").len();
    let mut cells = std::collections::BTreeSet::new();
    for _ in 0..count {
        let start = random.u64(0..bytes);
        let length = random.u64(1..=3 * CHANGE_BYTES / 2).min(bytes - start);
        match random.u8(0..3) {
            0 => disk.write_all_at(&vec![0; length as usize], start),
            1 => disk.write_all_at(&text(random, length as usize), start),
            _ => disk.write_all_at(&noise(random, length as usize), start),
        }
        .expect("writable");
        cells.extend(start / CHANGE_BYTES..=(start + length - 1) / CHANGE_BYTES);
    }
    let extent = |cell: u64| {
        let start = cell * CHANGE_BYTES;
        Extent { start, length: CHANGE_BYTES.min(bytes - start) }
    };
    cells.into_iter().map(extent).collect()
}

/// An empty sparse file of `bytes`.
pub fn blank(path: &Path, bytes: u64) -> File {
    let made = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.set_len(bytes).expect("the file system takes sparse files of this size");
    file
}

/// A disk of `bytes` that nothing compresses, and no other seed shares.
pub fn noise_disk(path: &Path, bytes: u64, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let disk = blank(path, bytes);
    for start in (0..bytes).step_by(MIB as usize) {
        let piece = noise(&mut random, MIB.min(bytes - start) as usize);
        disk.write_all_at(&piece, start).expect("writable");
    }
}

/// A disk of `bytes` of which about half can be compressed away, and no two blocks are the same.
pub fn half_noise_disk(path: &Path, bytes: u64, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let disk = blank(path, bytes);
    for start in (0..bytes).step_by(MIB as usize) {
        let length = MIB.min(bytes - start) as usize;
        let mut piece = noise(&mut random, length);
        let words = text(&mut random, length / 2);
        piece[..words.len()].copy_from_slice(&words);
        disk.write_all_at(&piece, start).expect("writable");
    }
}

/// Writes `bytes` at a position.
pub fn overwrite(path: &Path, position: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("an existing file");
    file.write_all_at(bytes, position).expect("writable");
}

/// Inverts `count` bytes at a position: silent damage.
pub fn flip(path: &Path, position: u64, count: usize) {
    let file = File::options().read(true).write(true).open(path).expect("an existing file");
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, position).expect("readable");
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, position).expect("writable");
}

/// Copies a file with its holes.
pub fn copy_sparse(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp {}", from.display());
}

/// Random bytes.
pub fn noise(random: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

fn text(random: &mut Rng, length: usize) -> Vec<u8> {
    const WORDS: [&str; 8] =
        ["proxy ", "datastore\n", "snapshot ", "block ", "= 0x", "restore ", "\t", "session; "];
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        bytes.extend_from_slice(random.choice(WORDS).expect("words").as_bytes());
        bytes.extend_from_slice(random.u16(..).to_string().as_bytes());
    }
    bytes.truncate(length);
    bytes
}
