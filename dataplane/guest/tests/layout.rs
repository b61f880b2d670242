//! Partition tables, LVM and signatures as the real tools make them.

#![allow(clippy::unwrap_used)]

mod images;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use gantry_guest::{Extent, VolumeKind, find_volumes};
use images::{Image, Loop, can, empty, feed, run};

const MIB: u64 = 1 << 20;

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn places(path: &Path) -> Vec<(String, Extent)> {
    let volumes = find_volumes(&Image::open(path));
    assert_eq!(volumes.refused, None);
    volumes.volumes.into_iter().map(|volume| (volume.place, volume.pieces[0])).collect()
}

fn range(start: u64, length: u64) -> Extent {
    Extent { start: start * MIB, length: length * MIB }
}

#[test]
fn mbr_with_logical_partitions_is_read_as_sfdisk_wrote_it() {
    if !can(false, &["sfdisk"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    empty(&path, 100 * MIB);
    let script = "label: dos\nstart=1MiB,size=9MiB,type=83\nstart=10MiB,size=80MiB,type=5\n\
        start=90MiB,size=8MiB,type=82\n\nstart=11MiB,size=9MiB\nstart=21MiB,size=9MiB\nstart=31MiB,size=50MiB\n";
    feed("sfdisk", &["--quiet", path.to_str().unwrap()], script);
    let named = |number: u32, range| (format!("partition {number}"), range);
    let listed = run("sfdisk", &["--json", path.to_str().unwrap()]);
    let found = places(&path);
    for (place, extent) in &found {
        let start = format!("\"start\": {},", extent.start / 512);
        let size = format!("\"size\": {},", extent.length / 512);
        assert!(listed.contains(&start) && listed.contains(&size), "{place} {extent:?}: {listed}");
    }
    let numbers: Vec<_> = found.iter().map(|(place, _)| place.as_str()).collect();
    let expected = ["partition 1", "partition 5", "partition 6", "partition 7", "partition 3"];
    assert_eq!(numbers, expected, "{listed}");
    assert_eq!(found[1], named(5, range(11, 9)));
    // A chain that leads to its own start.
    write(&path, 10 * MIB + 462 + 8, &[0; 4]);
    find_volumes(&Image::open(&path)).refused.unwrap();
}

#[test]
fn gpt_is_read_from_its_backup_and_doubts_are_refused() {
    if !can(false, &["sfdisk", "mkfs.xfs"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    empty(&path, 64 * MIB);
    let ldm = "AF9B60A0-1431-4F62-BC68-3311714A69AD";
    let script = format!(
        "label: gpt\nstart=1MiB,size=9MiB\nstart=20MiB,size=9MiB\nstart=12MiB,size=4MiB,type={ldm}\n"
    );
    feed("sfdisk", &["--quiet", path.to_str().unwrap()], &script);
    let whole = places(&path);
    let named = |number: u32, range| (format!("partition {number}"), range);
    assert_eq!(whole, [named(1, range(1, 9)), named(3, range(12, 4)), named(2, range(20, 9))]);
    let volumes = find_volumes(&Image::open(&path)).volumes;
    assert!(volumes[1].opaque.as_ref().unwrap().why.contains("dynamic disk"));
    // A grown disk: the backup is no longer at its end.
    OpenOptions::new().write(true).open(&path).unwrap().set_len(80 * MIB).unwrap();
    assert_eq!(places(&path), whole);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(64 * MIB).unwrap();
    // A damaged entry in the first, then in both.
    write(&path, 1024 + 32, &[9]);
    assert_eq!(places(&path), whole, "the backup serves");
    write(&path, 64 * MIB - 512 + 20, &[9]);
    assert!(find_volumes(&Image::open(&path)).refused.unwrap().why.contains("damaged"));
    // Hybrid.
    feed("sfdisk", &["--quiet", path.to_str().unwrap()], &script);
    let entry = [0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
    write(&path, 446 + 16, &entry);
    assert!(find_volumes(&Image::open(&path)).refused.unwrap().why.contains("hybrid"));
}

#[test]
fn ambiguous_and_encrypted_volumes_are_left_alone() {
    if !can(false, &["mke2fs", "mkswap", "mkfs.xfs"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    empty(&path, 32 * MIB);
    run("mke2fs", &["-q", "-F", path.to_str().unwrap()]);
    let only = |path: &Path| find_volumes(&Image::open(path)).volumes.remove(0);
    assert_eq!((only(&path).kind, only(&path).opaque), (VolumeKind::Ext4, None));
    write(&path, 4086, b"SWAPSPACE2");
    let refused = only(&path).opaque.unwrap().why;
    assert!(refused.contains("ext4") && refused.contains("swap"), "{refused}");
    empty(&path, 32 * MIB);
    write(&path, 0, b"LUKS\xba\xbe");
    assert!(only(&path).opaque.unwrap().why.contains("encrypted"));
    let disk = folder.path().join("swap");
    empty(&disk, 8 * MIB);
    run("mkswap", &[disk.to_str().unwrap()]);
    assert_eq!((only(&disk).kind, only(&disk).opaque), (VolumeKind::Swap, None));
    // A partition table over a file system.
    let xfs = folder.path().join("xfs");
    empty(&xfs, 400 * MIB);
    run("mkfs.xfs", &["-q", xfs.to_str().unwrap()]);
    assert_eq!(only(&xfs).kind, VolumeKind::Xfs);
    let entry = [0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
    write(&xfs, 446, &entry);
    write(&xfs, 510, &[0x55, 0xaa]);
    let volumes = find_volumes(&Image::open(&xfs));
    assert!(volumes.refused.unwrap().why.contains("XFS") && volumes.volumes.is_empty());
}

/// LVM's commands on these devices alone, with nothing of theirs kept on this host.
struct Lvm {
    folder: tempfile::TempDir,
    filter: String,
}

impl Lvm {
    fn new(devices: &[&Loop]) -> Lvm {
        let accept = devices.iter().map(|device| format!("\"a|^{}$|\",", device.name()));
        let filter = format!(
            "devices {{ use_devicesfile=0 filter=[{}\"r|.*|\"] scan=[\"/dev\"] obtain_device_list_from_udev=0 }} \
             global {{ locking_type=1 }} activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}",
            accept.collect::<String>()
        );
        Lvm { folder: tempfile::tempdir().unwrap(), filter }
    }

    fn run(&self, command: &str, arguments: &[&str]) -> String {
        let output = std::process::Command::new(command)
            .args(["--config", &self.filter, "--driverloaded", "n"])
            .args(arguments)
            .env("LVM_SYSTEM_DIR", self.folder.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command} {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn linear_logical_volumes_are_found_where_lvm_puts_them() {
    if !can(true, &["lvcreate", "losetup"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    empty(&path, 128 * MIB);
    let script = "label: gpt\nstart=1MiB,size=60MiB\nstart=64MiB,size=60MiB\n";
    feed("sfdisk", &["--quiet", path.to_str().unwrap()], script);
    let [first, second] = [1, 64].map(|start| Loop::part(&path, start * MIB, 60 * MIB));
    let lvm = Lvm::new(&[&first, &second]);
    lvm.run("vgcreate", &["vg", first.name(), second.name()]);
    for (name, size) in [("root", "8M"), ("swap", "12M"), ("big", "40M")] {
        lvm.run("lvcreate", &["-an", "-Zn", "-Wn", "-y", "-L", size, "-n", name, "vg"]);
    }
    lvm.run("lvextend", &["-L", "24M", "vg/root"]);
    lvm.run("lvcreate", &["-an", "-Zn", "-Wn", "-y", "-i2", "-L", "8M", "-n", "striped", "vg"]);
    let segments =
        "--noheadings --units b --nosuffix --segments -o lv_name,seg_start,seg_size,seg_pe_ranges";
    let listed = lvm.run("lvs", &segments.split(' ').chain(["vg"]).collect::<Vec<_>>());
    let volumes = find_volumes(&Image::open(&path)).volumes;
    let found = |name: &str| {
        let place = format!("logical volume vg/{name}");
        volumes.iter().find(|volume| volume.place == place).unwrap()
    };
    let mut segments_seen = 0;
    for line in listed.lines().filter(|line| !line.contains("striped")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (device, extents) = words[3].split_once(':').unwrap();
        let extent: u64 = extents.split('-').next().unwrap().parse().unwrap();
        let partition = if device == first.name() { MIB } else { 64 * MIB };
        let start = partition + MIB + extent * 4 * MIB;
        let piece = Extent { start, length: words[2].parse().unwrap() };
        let pieces = &found(words[0]).pieces;
        assert!(pieces.contains(&piece), "{line}: {pieces:?}");
        segments_seen += 1;
    }
    assert!(segments_seen >= 4, "{listed}");
    assert_eq!(found("root").pieces.len(), 2);
    let refused = found("striped").opaque.as_ref().unwrap();
    assert!(refused.why.contains("not linear"), "{refused}");
    // Without its second half, the group's volumes are anybody's guess.
    write(&path, 64 * MIB, &[0; 4096]);
    let volumes = find_volumes(&Image::open(&path)).volumes;
    let refused = volumes.iter().filter(|volume| volume.place.starts_with("logical"));
    let whys: Vec<_> = refused.map(|volume| volume.opaque.clone().unwrap().why).collect();
    assert_eq!(whys.len(), 4);
    assert!(whys.iter().all(|why| why.contains("not on this disk")), "{whys:?}");
}

#[test]
fn origins_of_snapshots_and_thin_volumes_are_left_alone() {
    if !can(true, &["lvcreate", "losetup"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    empty(&path, 128 * MIB);
    let device = Loop::whole(&path);
    let lvm = Lvm::new(&[&device]);
    lvm.run("vgcreate", &["vg", device.name()]);
    for name in ["root", "home"] {
        lvm.run("lvcreate", &["-an", "-Zn", "-Wn", "-y", "-L", "16M", "-n", name, "vg"]);
    }
    // A snapshot can only be made by a running device mapper; its metadata can be written.
    let text = folder.path().join("metadata");
    lvm.run("lvcreate", &["-an", "-Zn", "-Wn", "-y", "-L", "8M", "-n", "before", "vg"]);
    lvm.run("vgcfgbackup", &["-f", text.to_str().unwrap(), "vg"]);
    let segment = "snapshot0 {\nid = \"abcdef-abcd-abcd-abcd-abcd-abcd-abcdef\"\n\
        status = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = []\nsegment_count = 1\n\
        segment1 {\nstart_extent = 0\nextent_count = 4\ntype = \"snapshot\"\nchunk_size = 8\n\
        origin = \"root\"\ncow_store = \"before\"\n}\n}\n";
    let backup = std::fs::read_to_string(&text).unwrap();
    let (head, tail) = backup.split_once("logical_volumes {").unwrap();
    std::fs::write(&text, format!("{head}logical_volumes {{\n{segment}{tail}")).unwrap();
    lvm.run("vgcfgrestore", &["-f", text.to_str().unwrap(), "vg"]);
    let volumes = find_volumes(&Image::open(&path)).volumes;
    let why = |name: &str| {
        let place = format!("logical volume vg/{name}");
        let found = volumes.iter().find(|volume| volume.place == place).unwrap();
        found.opaque.clone().unwrap().why
    };
    assert!(why("root").contains("origin"), "{}", why("root"));
    let hidden = volumes.iter().all(|volume| !volume.place.ends_with("before"));
    assert!(hidden, "the snapshot's own volume is no volume: {volumes:?}");
    assert!(why("home").contains("not known"), "{}", why("home"));
}
