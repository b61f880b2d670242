//! Images and streams with bytes changed, cut and moved by a seed: an error or a defined read, in
//! bounded memory and time, and never a panic.

use std::os::unix::fs::FileExt;
use std::path::Path;

use gantry_vmdk::stream::{Parser, Writer, WriterOptions};
use gantry_vmdk::{Image, OpenOptions};

use crate::deltas::{Cell, cells, cowd, descriptor, se_sparse};
use crate::tool::{convert, folder, peak_bytes, raw};

/// Of each structure.
const MUTATIONS: u64 = 20_000;
/// What opening and reading a mutated image may add to the process.
const PEAK_BYTES_MAX: u64 = 32 << 20;

/// Changes `bytes` in one to three places, most of them below `metadata`.
fn mutate(bytes: &mut Vec<u8>, metadata: usize, random: &mut fastrand::Rng) {
    for _ in 0..random.u8(1..4) {
        if bytes.len() < 16 {
            return;
        }
        let limit = if random.u8(..8) == 0 { bytes.len() } else { metadata.min(bytes.len()) };
        let at = random.usize(..limit);
        let interesting = [
            0,
            1,
            2,
            127,
            128,
            512,
            4096,
            1 << 31,
            u32::MAX.into(),
            1 << 40,
            1 << 54,
            1 << 60,
            3 << 60,
            1 << 63,
            u64::MAX,
            u64::MAX - 1,
            random.u64(..),
            random.u64(..4096),
        ];
        match random.u8(..8) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes[at] = random.u8(..),
            2..=4 => {
                let width = [2, 4, 8][random.usize(..3)];
                let at = (at / width * width).min(bytes.len() - width);
                let value = interesting[random.usize(..interesting.len())].to_le_bytes();
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            5 => {
                let length = random.usize(1..600).min(bytes.len() - at);
                let from = random.usize(..=bytes.len() - length);
                bytes.copy_within(from..from + length, at);
            }
            6 => bytes.truncate(random.usize(..bytes.len())),
            _ => {
                let length = random.usize(1..600).min(bytes.len() - at);
                bytes[at..at + length].fill([0, 0xff][random.usize(..2)]);
            }
        }
    }
}

/// Runs `attempt` for each seed; says which one failed.
fn for_each_seed(mut attempt: impl FnMut(&mut fastrand::Rng) -> bool) {
    let before = peak_bytes();
    let mut fine = 0;
    for seed in 0..MUTATIONS {
        let once = std::panic::AssertUnwindSafe(|| attempt(&mut fastrand::Rng::with_seed(seed)));
        match std::panic::catch_unwind(once) {
            Ok(ok) => fine += u64::from(ok),
            Err(_) => panic!("seed {seed}"),
        }
    }
    println!("{fine} of {MUTATIONS} were readable");
    assert!(fine > 0 && fine < MUTATIONS, "{fine} of {MUTATIONS} were readable");
    let grown = peak_bytes() - before;
    assert!(grown < PEAK_BYTES_MAX, "memory grew by {grown} bytes");
}

/// Opens and reads around; whether all of it went well.
fn look(path: &Path, random: &mut fastrand::Rng) -> bool {
    let options = OpenOptions { bare_delta: true, ..OpenOptions::default() };
    let Ok(image) = Image::open(path, &options) else { return false };
    let size = image.size_bytes();
    let mut buffer = vec![0xaa; 300_000];
    let mut fine = true;
    // What the map leaves out reads as zeros.
    let mut at = 0;
    for _ in 0..20 {
        let Ok(run) = image.next_data(at) else {
            fine = false;
            break;
        };
        let (start, end) = run.unwrap_or((size, size));
        assert!(at <= start && start <= end && end <= size, "{at} {start} {end} of {size}");
        let part = (start - at).min(4096) as usize;
        if image.read_at(start - part as u64, &mut buffer[..part]).is_ok() {
            assert!(buffer[..part].iter().all(|&byte| byte == 0), "data before {start}");
        }
        at = end;
        if at == size {
            break;
        }
    }
    for _ in 0..3 {
        let length = (random.u64(..300_000)).min(size);
        let from = random.u64(..=size - length);
        fine &= image.read_at(from, &mut buffer[..length as usize]).is_ok();
    }
    fine
}

/// Mutates the file `name`, of which `open` is the image.
fn mutate_file(folder: &Path, name: &str, open: &str, metadata: usize) {
    let original = std::fs::read(folder.join(name)).expect("a file");
    let file = std::fs::File::options().write(true).open(folder.join(name)).expect("a file");
    for_each_seed(|random| {
        let mut bytes = original.clone();
        mutate(&mut bytes, metadata, random);
        file.set_len(bytes.len() as u64).expect("its length");
        file.write_all_at(&bytes, 0).expect("its bytes");
        look(&folder.join(open), random)
    });
}

fn few_cells(count: usize, grain_bytes: usize, zeros: bool) -> Vec<Cell> {
    let mut random = fastrand::Rng::with_seed(9);
    let mut cells = vec![Cell::Parent; count];
    for (place, cell) in cells.iter_mut().zip(self::cells(60, grain_bytes, zeros, &mut random)) {
        *place = cell;
    }
    cells
}

#[test]
fn hosted_sparse() {
    let folder = folder();
    raw(folder.path(), "d.raw", 300_032, 4);
    convert(folder.path(), &["-O", "vmdk"], "d.raw", "d.vmdk");
    mutate_file(folder.path(), "d.vmdk", "d.vmdk", 26 * 512);
}

#[test]
fn compressed_image() {
    let folder = folder();
    raw(folder.path(), "d.raw", 100_352, 4);
    convert(folder.path(), &["-O", "vmdk", "-o", "subformat=streamOptimized"], "d.raw", "d.vmdk");
    mutate_file(folder.path(), "d.vmdk", "d.vmdk", 26 * 512);
}

#[test]
fn vmfs_sparse() {
    let folder = folder();
    let mut random = fastrand::Rng::with_seed(1);
    let bytes = cowd(5000, 1, &few_cells(5000, 512, false), &mut random);
    std::fs::write(folder.path().join("d.vmdk"), bytes).expect("a delta");
    mutate_file(folder.path(), "d.vmdk", "d.vmdk", 5 * 512 + 64 * 512);
}

#[test]
fn se_sparse_delta() {
    let folder = folder();
    let mut random = fastrand::Rng::with_seed(1);
    let mut bytes = se_sparse(8 * 100, &few_cells(100, 4096, true), &mut random);
    bytes.truncate(200_000);
    std::fs::write(folder.path().join("d.vmdk"), bytes).expect("a delta");
    mutate_file(folder.path(), "d.vmdk", "d.vmdk", 12 * 512);
}

#[test]
fn descriptors() {
    let folder = folder();
    let mut random = fastrand::Rng::with_seed(1);
    std::fs::write(folder.path().join("b-flat.vmdk"), vec![7; 51_200]).expect("data");
    descriptor(folder.path(), "b.vmdk", "vmfs", (1, None), "RW 100 VMFS \"b-flat.vmdk\"");
    let bytes = cowd(60, 1, &few_cells(60, 512, false), &mut random);
    std::fs::write(folder.path().join("d-delta.vmdk"), bytes).expect("a delta");
    let ids = (2, Some((1, "b.vmdk")));
    let extents = "RW 60 VMFSSPARSE \"d-delta.vmdk\"\nRW 5 ZERO\nRW 7 FLAT \"b-flat.vmdk\" 3";
    descriptor(folder.path(), "d.vmdk", "custom", ids, extents);
    let path = folder.path().join("d.vmdk");
    let original = std::fs::read_to_string(&path).expect("a descriptor");
    let file = std::fs::File::options().write(true).open(&path).expect("a file");
    for_each_seed(|random| {
        let mut lines: Vec<String> = original.lines().map(String::from).collect();
        let at = random.usize(..lines.len());
        let from = random.usize(..lines.len());
        match random.u8(..6) {
            0 => lines.swap(at, from),
            1 => lines[at] = lines[from].clone(),
            2 => drop(lines.remove(at)),
            3 => {
                let mut words: Vec<&str> = lines[at].split(' ').collect();
                let with: Vec<&str> = original.split_whitespace().collect();
                let word = random.usize(..words.len());
                let numbers = ["0", "-1", "1e9", "4294967296", "18446744073709551615"];
                words[word] = match random.u8(..2) {
                    0 => with[random.usize(..with.len())],
                    _ => numbers[random.usize(..numbers.len())],
                };
                lines[at] = words.join(" ");
            }
            _ => {}
        }
        let mut bytes = lines.join("\n").into_bytes();
        if random.bool() {
            let metadata = bytes.len();
            mutate(&mut bytes, metadata, random);
        }
        file.set_len(bytes.len() as u64).expect("its length");
        file.write_all_at(&bytes, 0).expect("its bytes");
        look(&path, random)
    });
}

#[test]
fn streams() {
    let mut writer = Writer::new(Vec::new(), &WriterOptions::new(40 << 20)).expect("a writer");
    let mut random = fastrand::Rng::with_seed(2);
    for grain in [0_u64, 3, 4, 511, 513] {
        let mut data = vec![(grain % 250) as u8 + 1; 65_536];
        random.fill(&mut data[..2000]);
        writer.write(grain * 65_536, &data).expect("a grain");
    }
    let original = writer.finish().expect("the end");
    for_each_seed(|random| {
        let mut bytes = original.clone();
        if random.bool() {
            let metadata = bytes.len();
            mutate(&mut bytes, metadata, random);
        } else {
            // Only what is behind the descriptor.
            let mut rest = bytes.split_off(65_536);
            let metadata = rest.len();
            mutate(&mut rest, metadata, random);
            bytes.extend_from_slice(&rest);
        }
        let whole = bytes == original;
        let Ok(mut parser) = Parser::new(bytes.as_slice()) else { return false };
        let mut end = 0;
        loop {
            match parser.next_grain() {
                Ok(Some(grain)) => {
                    assert!(grain.offset >= end && grain.data.len() <= 65_536);
                    end = grain.offset + grain.data.len() as u64;
                }
                // Changes of what does not count (padding, a name) are all that may pass.
                Ok(None) => return whole || bytes.len() == original.len(),
                Err(_) => return false,
            }
        }
    });
}
