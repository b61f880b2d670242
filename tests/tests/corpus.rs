//! The corpus is what it says: every scenario stands on this.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use gantry_common::extents::Extent;
use gantry_tests::corpus::{Image, images};
use gantry_tests::devices::{LoopDevice, is_root};

const PIECE: u64 = 64 << 10;

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The numbers of the 64 KiB pieces in which two files differ, found by reading everything.
fn different_pieces(one: &Path, two: &Path, size: u64) -> BTreeSet<u64> {
    let (one, two) = (open(one), open(two));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut found = BTreeSet::new();
    for at in (0..size).step_by(1 << 20) {
        let length = (size - at).min(1 << 20) as usize;
        one.read_exact_at(&mut a[..length], at).expect("read");
        two.read_exact_at(&mut b[..length], at).expect("read");
        let pieces = a[..length].chunks(PIECE as usize).zip(b[..length].chunks(PIECE as usize));
        let differing = pieces.enumerate().filter(|(_, (a, b))| a != b);
        found.extend(differing.map(|(number, _)| at / PIECE + number as u64));
    }
    found
}

fn listed_pieces(image: &Image) -> BTreeSet<u64> {
    let text = std::fs::read_to_string(&image.changed).expect("the list of changes");
    let extents: Vec<Extent> = serde_json::from_str(&text).expect("a list of extents");
    assert!(extents.windows(2).all(|w| w[0].start + w[0].length < w[1].start), "{}", image.name);
    for extent in &extents {
        assert_eq!(extent.start % PIECE, 0, "{}", image.name);
        assert!(extent.start + extent.length <= image.virtual_bytes, "{}", image.name);
    }
    let pieces = |e: &Extent| e.start / PIECE..(e.start + e.length).div_ceil(PIECE);
    extents.iter().flat_map(pieces).collect()
}

#[test]
fn changed_extents_are_exactly_the_difference() {
    for image in images().expect("a corpus") {
        let found = different_pieces(&image.first, &image.second, image.virtual_bytes);
        assert!(!found.is_empty(), "{}", image.name);
        assert_eq!(found, listed_pieces(&image), "{}", image.name);
    }
}

#[test]
fn sparse_full_and_loop_forms_hold_the_same_disk() {
    let images = images().expect("a corpus");
    for image in images.iter().filter(|image| image.name == "linux") {
        let size = image.virtual_bytes;
        let full = image.full.as_ref().expect("a fully allocated form");
        let allocated = |path: &Path| open(path).metadata().expect("metadata").blocks() * 512;
        assert!(allocated(&image.first) < size * 3 / 4, "the sparse form has holes");
        assert!(allocated(full) >= size, "the full form has none");
        assert!(different_pieces(&image.first, full, size).is_empty());
        if !is_root() {
            continue;
        }
        let device = LoopDevice::attach(&image.first, true);
        assert!(different_pieces(&image.first, device.path(), size).is_empty());
    }
}
