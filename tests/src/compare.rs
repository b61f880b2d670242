//! Comparison bit for bit that does not read holes.
//!
//! In: two files or block devices. Out: the first difference, if any. A 16 TiB disk with little in
//! it compares in moments.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom as Hole;

/// Read at a time.
const STEP: u64 = 1 << 20;

/// Asserts that both hold the same bytes, and as many.
#[track_caller]
pub fn assert_same(expected: &Path, found: &Path) {
    if let Some(difference) = first_difference(expected, found) {
        panic!("{} differs from {}: {difference}", found.display(), expected.display());
    }
}

/// Where two files begin to differ, in words.
pub fn first_difference(one: &Path, other: &Path) -> Option<String> {
    let [mut a, mut b] = [one, other]
        .map(|path| File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    let [a_size, b_size] = [size(&mut a), size(&mut b)];
    if a_size != b_size {
        return Some(format!("{b_size} bytes and not {a_size}"));
    }
    let [mut left, mut right] = [vec![0u8; STEP as usize], vec![0u8; STEP as usize]];
    let mut position = 0;
    loop {
        position = next_data(&a, position, a_size).min(next_data(&b, position, a_size));
        if position >= a_size {
            return None;
        }
        let length = (STEP - position % STEP).min(a_size - position) as usize;
        let read = |file: &File, into: &mut [u8], path: &Path| {
            let read = file.read_exact_at(into, position);
            read.unwrap_or_else(|error| panic!("{} at {position}: {error}", path.display()));
        };
        read(&a, &mut left[..length], one);
        read(&b, &mut right[..length], other);
        if left[..length] != right[..length] {
            let at = left.iter().zip(&right).position(|(x, y)| x != y).unwrap_or(0) as u64;
            return Some(format!("first at byte {}", position + at));
        }
        position += length as u64;
    }
}

/// The next position that may hold data; devices have no holes to tell.
fn next_data(file: &File, position: u64, size: u64) -> u64 {
    match rustix::fs::seek(file, Hole::Data(position)) {
        Ok(data) => data,
        Err(rustix::io::Errno::NXIO) => size,
        Err(_) => position,
    }
}

fn size(file: &mut File) -> u64 {
    file.seek(SeekFrom::End(0)).expect("a disk has an end")
}
