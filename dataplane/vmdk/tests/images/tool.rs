//! What the tests share: qemu's commands, disks with known contents, comparing all of an image.

use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_vmdk::{Image, OpenOptions};

/// A folder that goes with its files.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Runs a command in `folder`, which must succeed.
pub fn run(folder: &Path, command: &str, arguments: &[&str]) {
    let output = Command::new(command)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{command} (package qemu-utils): {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {arguments:?}: {text}");
}

/// Converts between formats with qemu-img.
pub fn convert(folder: &Path, options: &[&str], from: &str, to: &str) {
    run(folder, "qemu-img", &[&["convert", "-q"], options, &[from, to]].concat());
}

/// A raw image of `size` bytes: random pieces at random places, some of them zeros, holes between.
pub fn raw(folder: &Path, name: &str, size: u64, seed: u64) -> PathBuf {
    use std::os::unix::fs::FileExt;
    println!("{name}: seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let path = folder.join(name);
    let file = std::fs::File::create(&path).expect("a raw image");
    file.set_len(size).expect("its size");
    for _ in 0..random.u64(3..40) {
        let length = random.u64(1..300_000).min(size);
        let mut data = vec![0; length as usize];
        if random.u8(..) > 30 {
            random.fill(&mut data);
        }
        let place = match random.u8(..4) {
            0 => random.u64(..=size - length) / 65_536 * 65_536,
            1 => size - length,
            _ => random.u64(..=size - length),
        };
        file.write_all_at(&data, place).expect("data");
    }
    path
}

/// The image at `path`, within its folder.
pub fn open(path: &Path) -> Image {
    Image::open(path, &OpenOptions::default()).expect("an image")
}

/// Compares all of `image` with the raw image at `path`: by pieces of random length, by its map,
/// and by random reads.
pub fn compare(image: &Image, raw: &Path, seed: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(raw).expect("the raw image");
    let size = file.metadata().expect("its size").len();
    assert_eq!(image.size_bytes(), size, "the disk's size");
    let mut random = fastrand::Rng::with_seed(seed);
    let check = |from: u64, length: u64| {
        let mut ours = vec![0xaa; length as usize];
        let mut theirs = vec![0; length as usize];
        image.read_at(from, &mut ours).expect("a read");
        file.read_exact_at(&mut theirs, from).expect("a raw read");
        if let Some(first) = (0..ours.len()).find(|&index| ours[index] != theirs[index]) {
            panic!("byte {} differs in a read of {length} from {from}", from + first as u64);
        }
    };
    // The map: what it leaves out is zero, and its runs grow.
    let mut at = 0;
    let mut zero = vec![0; 1 << 20];
    while at < size {
        let (start, end) = image.next_data(at).expect("the map").unwrap_or((size, size));
        assert!(at <= start && (start < end || start == size) && end <= size);
        let mut hole = at;
        while hole < start {
            let part = (start - hole).min(zero.len() as u64);
            if size <= 64 << 20 || hole == at || hole + part == start {
                file.read_exact_at(&mut zero[..part as usize], hole).expect("a raw read");
                assert!(zero[..part as usize].iter().all(|&b| b == 0), "no data at {hole}");
                if size <= 64 << 20 {
                    check(hole, part);
                }
            }
            hole += part;
        }
        let mut data = start;
        while data < end {
            let part = (end - data).min(random.u64(1..3_000_000));
            check(data, part);
            data += part;
        }
        at = end;
    }
    for _ in 0..50 {
        let length = random.u64(..=size.min(200_000));
        check(random.u64(..=size - length), length);
    }
}

/// The most memory that this process has asked for so far, used or not.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).expect("VmPeak");
    let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib << 10
}
