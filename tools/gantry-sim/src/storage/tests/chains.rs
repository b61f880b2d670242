//! Named cases: files and names of a snapshot's life, the tree of snapshots, what is refused.

use super::super::{DiskSpec, LinkKind, SparseFormat, Storage};
use super::{Lab, is_locked, noise};

const MIB: usize = 1 << 20;

#[test]
fn a_snapshot_forks_the_delta_and_removal_commits_it() {
    for (file, ending, format) in [
        ("[vmfs5] vm/vm.vmdk", "delta", SparseFormat::Cowd),
        ("[vmfs6] vm/vm.vmdk", "sesparse", SparseFormat::SeSparse),
    ] {
        let lab = Lab::new(1);
        let disk = lab.disk(file, 40 * MIB as u64);
        let first = noise(1, MIB);
        lab.storage.write(disk, 0, &first).unwrap();
        let snapshot = lab.storage.snapshot(&[disk]).unwrap();
        let flat = lab.folder.path().join(&file[1..6]).join("vm/vm-flat.vmdk");
        let before = std::fs::read(&flat).unwrap();
        lab.storage.write(disk, 512, &noise(2, 1024)).unwrap();
        lab.storage.write(disk, 33 * MIB as u64, &noise(3, MIB)).unwrap();
        lab.storage.discard(disk, 8192, 100 * 512).unwrap();

        let info = lab.storage.disk(disk).unwrap();
        assert_eq!(info.chain.len(), 2);
        assert_eq!(info.chain[0].file.file_name(), "vm-000001.vmdk");
        assert_eq!(info.chain[0].extent_file.file_name(), format!("vm-000001-{ending}.vmdk"));
        assert_eq!(info.chain[0].kind, LinkKind::Delta(format));
        assert_eq!(info.chain[0].parent.as_ref(), Some(&info.chain[1].file));
        assert_eq!(info.chain[1].kind, LinkKind::Flat);
        assert!(before == std::fs::read(&flat).unwrap(), "the frozen base was written to");
        assert_eq!(&lab.frozen(snapshot, disk)[..MIB], &first[..]);
        lab.agrees_with_qemu(disk, file);

        let live = lab.live(disk);
        let removal = lab.storage.remove_snapshot(snapshot, true).unwrap();
        assert!(!removal.consolidation_needed);
        assert!(live == lab.live(disk));
        assert!(live == std::fs::read(&flat).unwrap(), "the delta was not committed");
        assert_eq!(lab.storage.disk(disk).unwrap().chain.len(), 1);
        let left = std::fs::read_dir(flat.parent().unwrap()).unwrap().count();
        assert_eq!(left, 2, "only descriptor and flat extent stay");
        lab.agrees_with_qemu(disk, file);
    }
}

#[test]
fn a_chain_may_mix_formats_and_any_snapshot_may_go() {
    for victim in 0..3 {
        let lab = Lab::new(7);
        let disk = lab.disk("[vmfs5] vm/vm.vmdk", 6 * MIB as u64 + 512);
        let mut snapshots = Vec::new();
        for step in 0..3u64 {
            let kind =
                [super::DatastoreKind::Vmfs5, super::DatastoreKind::Vmfs6][step as usize % 2];
            lab.storage.write(disk, step * 700 * 512, &noise(step, MIB)).unwrap();
            lab.storage.add_datastore("vmfs5", kind).unwrap();
            snapshots.push(lab.storage.snapshot(&[disk]).unwrap());
        }
        lab.storage.write(disk, 6 * MIB as u64, &noise(9, 512)).unwrap();
        let views: Vec<_> = snapshots.iter().map(|s| lab.frozen(*s, disk)).collect();
        let live = lab.live(disk);
        lab.storage.remove_snapshot(snapshots[victim], true).unwrap();
        assert!(live == lab.live(disk));
        for (i, snapshot) in snapshots.iter().enumerate().filter(|(i, _)| *i != victim) {
            assert!(views[i] == lab.frozen(*snapshot, disk), "{victim} removed, {i} changed");
        }
        assert_eq!(lab.storage.disk(disk).unwrap().chain.len(), 3);
        lab.agrees_with_qemu(disk, &format!("{victim} removed"));
    }
}

#[test]
fn a_branch_of_the_tree_stays_until_one_child_is_left() {
    let lab = Lab::new(3);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", 4 * MIB as u64);
    let s1 = lab.storage.snapshot(&[disk]).unwrap();
    lab.storage.write(disk, 0, &noise(1, 4096)).unwrap();
    let s2 = lab.storage.snapshot(&[disk]).unwrap();
    lab.storage.write(disk, 4096, &noise(2, 4096)).unwrap();
    lab.storage.revert(s1).unwrap();
    assert_eq!(lab.storage.disk(disk).unwrap().current_snapshot, Some(s1));
    lab.storage.write(disk, 8192, &noise(3, 4096)).unwrap();
    let (branch, live) = (lab.frozen(s2, disk), lab.live(disk));
    assert!(live[..4096].iter().all(|b| *b == 0), "revert kept what was written");

    let removal = lab.storage.remove_snapshot(s1, true).unwrap();
    assert!(!removal.consolidation_needed, "two branches need the base: nothing to merge");
    assert!(branch == lab.frozen(s2, disk) && live == lab.live(disk));
    lab.agrees_with_qemu(disk, "two branches");
    lab.storage.remove_snapshot(s2, true).unwrap();
    assert!(live == lab.live(disk));
    assert_eq!(lab.storage.disk(disk).unwrap().chain.len(), 1);
}

#[test]
fn without_consolidation_the_delta_is_left_over() {
    let lab = Lab::new(4);
    let disk = lab.disk("[vmfs6] vm/vm.vmdk", MIB as u64);
    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    lab.storage.write(disk, 0, &noise(1, 4096)).unwrap();
    let removal = lab.storage.remove_snapshot(snapshot, false).unwrap();
    assert!(removal.consolidation_needed);
    assert!(lab.storage.consolidation_needed(&[disk]).unwrap());
    lab.storage.consolidate(&[disk]).unwrap();
    assert!(!lab.storage.consolidation_needed(&[disk]).unwrap());
    assert_eq!(&lab.live(disk)[..4096], &noise(1, 4096)[..]);
}

#[test]
fn images_are_copied_and_impossible_requests_refused() {
    let lab = Lab::new(5);
    let image = lab.folder.path().join("image.raw");
    std::fs::write(&image, noise(1, 8192)).unwrap();
    let spec = DiskSpec {
        file: "[vmfs6] a/a.vmdk".parse().unwrap(),
        capacity_bytes: MIB as u64,
        image: Some(image),
        uuid: Some("6000C29a-0000-1111-2222-333333333333".into()),
        thin: false,
    };
    let disk = lab.storage.create_disk(&spec).unwrap();
    assert_eq!(&lab.live(disk)[..8192], &noise(1, 8192)[..]);
    assert_eq!(lab.storage.disk(disk).unwrap().uuid, "6000C29a-0000-1111-2222-333333333333");
    assert_eq!(lab.storage.find_disk(&"[vmfs6] a/a-flat.vmdk".parse().unwrap()), Some(disk));
    lab.agrees_with_qemu(disk, "image");

    assert!(lab.storage.create_disk(&spec).is_err(), "the file is there already");
    let bad = |change: &dyn Fn(&mut DiskSpec)| {
        let mut spec = DiskSpec { file: "[vmfs6] b/b.vmdk".parse().unwrap(), ..spec.clone() };
        change(&mut spec);
        assert!(lab.storage.create_disk(&spec).is_err(), "{spec:?}");
    };
    bad(&|spec| spec.capacity_bytes = 4096);
    bad(&|spec| spec.capacity_bytes = MIB as u64 + 1);
    bad(&|spec| spec.uuid = Some("nonsense".into()));
    assert!(lab.storage.write(disk, MIB as u64 - 512, &[0; 1024]).is_err());
    assert!(lab.storage.write(disk, 1, &[0; 512]).is_err());
    assert!(lab.storage.read(disk, u64::MAX - 511, &mut [0; 512]).is_err());
    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    assert!(lab.storage.grow_disk(disk, 2 * MIB as u64).is_err());
    assert!(is_locked(lab.storage.delete_disk(disk)));
    lab.storage.remove_snapshot(snapshot, true).unwrap();
    lab.storage.grow_disk(disk, 2 * MIB as u64).unwrap();
    lab.agrees_with_qemu(disk, "grown");
    lab.storage.delete_disk(disk).unwrap();
    assert_eq!(std::fs::read_dir(lab.folder.path().join("vmfs6/a")).unwrap().count(), 0);
}

#[test]
fn a_second_storage_finds_disks_chains_and_snapshots() {
    let lab = Lab::new(6);
    let disk = lab.disk("[vmfs5] vm/vm.vmdk", 3 * MIB as u64);
    lab.storage.write(disk, 0, &noise(1, MIB)).unwrap();
    let snapshot = lab.storage.snapshot(&[disk]).unwrap();
    lab.storage.write(disk, 4096, &noise(2, MIB)).unwrap();
    let (live, frozen) = (lab.live(disk), lab.frozen(snapshot, disk));
    let Lab { folder, storage } = lab;
    drop(storage);
    let storage = Storage::open(folder.path(), 6).unwrap();
    let lab = Lab { folder, storage };
    assert_eq!(lab.storage.disks(), [disk]);
    assert_eq!(lab.storage.snapshots(), [snapshot]);
    assert!(live == lab.live(disk) && frozen == lab.frozen(snapshot, disk));
    lab.storage.write(disk, 2 * MIB as u64, &noise(3, 8192)).unwrap();
    lab.agrees_with_qemu(disk, "after a restart");
}
