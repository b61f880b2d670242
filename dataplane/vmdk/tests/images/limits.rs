//! Memory and time by what is looked at, not by the disk's size; many readers at once.

use std::fs::File;
use std::os::unix::fs::FileExt;

use gantry_vmdk::{Image, OpenOptions};

use crate::deltas::{cells, descriptor, lay_over, se_sparse};
use crate::tool::{folder, open, peak_bytes};

/// A seSparse disk of 256 GiB, each of whose tables exists: 512 MiB of tables, in a file of holes.
#[test]
fn the_tables_of_a_large_disk_do_not_stay_in_memory() {
    let folder = folder();
    let tables = (1_u64 << 38) / (16 << 20);
    let mut random = fastrand::Rng::with_seed(1);
    let file = File::create(folder.path().join("d-sesparse.vmdk")).expect("a file");
    let mut header = se_sparse(8, &[], &mut random);
    header.resize(4096, 0);
    let tables_start = 8 + tables * 8 / 512;
    let grains_start = tables_start + tables * 64;
    for (field, value) in
        [(2, tables * 4096 * 8), (17, tables * 8 / 512), (18, tables_start), (24, grains_start)]
    {
        header[field * 8..][..8].copy_from_slice(&u64::to_le_bytes(value));
    }
    file.write_all_at(&header, 0).expect("the header");
    let directory: Vec<u8> =
        (0..tables).flat_map(|table| (table | 1 << 60).to_le_bytes()).collect();
    file.write_all_at(&directory, 8 * 512).expect("the directory");
    // Two grains: in the middle, and the last one.
    let at = |table: u64, entry: u64| tables_start * 512 + table * 32_768 + entry * 8;
    file.write_all_at(&(3_u64 << 60).to_le_bytes(), at(tables / 2, 7)).expect("an entry");
    file.write_all_at(&(3_u64 << 60 | 1 << 48).to_le_bytes(), at(tables - 1, 4095)).expect("one");
    file.write_all_at(&[1; 8192], grains_start * 512).expect("the grains");
    let extent = format!("RW {} SESPARSE \"d-sesparse.vmdk\"", tables * 4096 * 8);
    descriptor(folder.path(), "d.vmdk", "seSparse", (1, None), &extent);

    let before = peak_bytes();
    let options = OpenOptions { table_cache_bytes: 1 << 20, ..OpenOptions::default() };
    let image = Image::open(&folder.path().join("d.vmdk"), &options).expect("an image");
    let middle = (1 << 37) + 7 * 4096;
    assert_eq!(image.next_data(0).expect("the map"), Some((middle, middle + 4096)));
    let last = (1 << 38) - 4096;
    assert_eq!(image.next_data(middle + 4096).expect("the map"), Some((last, last + 4096)));
    let grown = peak_bytes() - before;
    assert!(grown < 16 << 20, "{grown} bytes for tables of 512 MiB");
}

#[test]
fn many_threads_read_one_image() {
    let folder = folder();
    let mut random = fastrand::Rng::with_seed(5);
    let cells = cells(9000, 4096, true, &mut random);
    let mut disk = vec![0; 9000 * 4096];
    random.fill(&mut disk);
    std::fs::write(folder.path().join("b-flat.vmdk"), &disk).expect("data");
    descriptor(folder.path(), "b.vmdk", "vmfs", (1, None), "RW 72000 VMFS \"b-flat.vmdk\"");
    let delta = se_sparse(72_000, &cells, &mut random);
    std::fs::write(folder.path().join("d-sesparse.vmdk"), delta).expect("a delta");
    let ids = (2, Some((1, "b.vmdk")));
    descriptor(folder.path(), "d.vmdk", "seSparse", ids, "RW 72000 SESPARSE \"d-sesparse.vmdk\"");
    lay_over(&mut disk, &cells, 4096);
    let image = open(&folder.path().join("d.vmdk"));
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (image, disk) = (&image, &disk);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..200 {
                    let length = random.usize(..100_000);
                    let from = random.usize(..disk.len() - length);
                    let mut data = vec![0; length];
                    image.read_at(from as u64, &mut data).expect("a read");
                    assert!(data == disk[from..from + length], "seed {seed}, from {from}");
                }
            });
        }
    });
}

#[test]
fn holes_of_flat_files_are_left_out_of_the_map() {
    let folder = folder();
    let file = File::create(folder.path().join("d-flat.vmdk")).expect("a file");
    file.set_len(64 << 20).expect("its length");
    for place in [1_u64 << 20, 40 << 20] {
        file.write_all_at(&[1; 65_536], place).expect("data");
    }
    // The first MiB of the file is not the disk's.
    let extent = "RW 129024 FLAT \"d-flat.vmdk\" 2048";
    descriptor(folder.path(), "d.vmdk", "monolithicFlat", (1, None), extent);
    let image = open(&folder.path().join("d.vmdk"));
    assert_eq!(image.next_data(0).expect("the map"), Some((0, 65_536)));
    let second = (39 << 20, (39 << 20) + 65_536);
    assert_eq!(image.next_data(65_536).expect("the map"), Some(second));
    assert_eq!(image.next_data(second.0 + 1).expect("the map"), Some((second.0 + 1, second.1)));
    assert_eq!(image.next_data(second.1).expect("the map"), None);
    assert_eq!(image.next_data(u64::MAX).expect("the map"), None);
}
