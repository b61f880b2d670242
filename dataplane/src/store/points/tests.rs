//! Tests of points' files: rot in either, flags, deleting and purging with the power cut anywhere.

use gantry_common::ids::SessionId;
use gantry_common::units::Compression;

use super::super::layout::{copy_path, manifest_path};
use super::super::manifest::{list_deleted, list_points, point_of};
use super::super::storage::memory::MemoryStorage;
use super::*;

const REPOSITORY: RepositoryId = RepositoryId([1; 16]);

fn manifest(number: u8) -> Manifest {
    let session = SessionId([number; 16]);
    Manifest {
        repository: REPOSITORY,
        point: point_of(99, session),
        name: "web/01".into(),
        session,
        created_ms: 99,
        parent: None,
        epoch: 1,
        compression: Compression::Optimal,
        disks: Vec::new(),
        vm_config: vec![1, 2, 3],
        flags: PointFlags::default(),
        extensions: Vec::new(),
    }
}

fn disk_with(manifests: &[&Manifest]) -> MemoryStorage {
    let disk = MemoryStorage::new();
    disk.create_dir("points").unwrap();
    disk.sync_dir("").unwrap();
    manifests.iter().for_each(|manifest| manifest.commit(&disk).unwrap());
    disk.after_power_loss()
}

fn find(disk: &MemoryStorage, manifest: &Manifest) -> Result<Option<Manifest>, StoreError> {
    Manifest::find(disk, &manifest.name, manifest.point, REPOSITORY)
}

#[test]
fn either_file_of_a_point_may_rot() {
    let manifest = manifest(7);
    let dir = points_dir(&manifest.name);
    let disk = disk_with(&[&manifest]);
    let [first, copy] = [manifest_path, copy_path].map(|path| path("web/01", manifest.point));
    for at in 0..manifest.encode().len() as u64 {
        disk.flip(&first, at);
        let read = read_point(&disk, &dir, manifest.point, PointFile::Manifest, REPOSITORY);
        let read = read.unwrap().unwrap();
        assert_eq!(read.manifest, manifest, "byte {at}");
        let fault = read.fault.expect("the damage is told").to_string();
        assert!(fault.contains(&first), "byte {at}: {fault}");
        disk.flip(&copy, at);
        assert!(find(&disk, &manifest).is_err(), "byte {at}: both are damaged");
        disk.flip(&first, at);
        assert_eq!(find(&disk, &manifest).unwrap(), Some(manifest.clone()), "byte {at}");
        assert!(copy_fault(&disk, &dir, &manifest).is_some(), "byte {at}");
        disk.flip(&copy, at);
        assert!(copy_fault(&disk, &dir, &manifest).is_none(), "byte {at}");
    }
}

#[test]
fn a_copy_alone_is_no_point_and_goes() {
    let (one, two) = (manifest(7), manifest(8));
    let dir = points_dir(&one.name);
    let disk = disk_with(&[&one, &two]);
    disk.remove(&manifest_path("web/01", one.point)).unwrap();
    assert_eq!(find(&disk, &one).unwrap(), None);
    assert_eq!(list_points(&disk, &dir).unwrap(), [two.point]);
    assert_eq!(remove_orphaned_copies(&disk, &dir).unwrap(), 1);
    assert_eq!(remove_orphaned_copies(&disk, &dir).unwrap(), 0);
    assert!(copy_fault(&disk, &dir, &two).is_none());
}

#[test]
fn a_whole_manifest_of_a_newer_format_is_not_passed_over() {
    let manifest = manifest(7);
    let disk = disk_with(&[&manifest]);
    let mut bytes = manifest.encode();
    bytes[8] = 2;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..16]).update(&bytes[48..]);
    bytes[16..48].copy_from_slice(hasher.finalize().as_bytes());
    write_file(&disk, &manifest_path("web/01", manifest.point), &bytes).unwrap();
    let error = find(&disk, &manifest).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 2, .. }), "{error}");
}

#[test]
fn another_points_manifest_does_not_pass() {
    let (one, two) = (manifest(7), manifest(8));
    let disk = disk_with(&[&one, &two]);
    write_file(&disk, &manifest_path("web/01", one.point), &two.encode()).unwrap();
    assert_eq!(find(&disk, &one).unwrap(), Some(one.clone()), "its copy serves");
    write_file(&disk, &copy_path("web/01", one.point), &two.encode()).unwrap();
    let error = find(&disk, &one).unwrap_err().to_string();
    assert!(error.contains(&two.point.to_string()), "{error}");
}

/// Power cut after every operation of a change: afterwards the point reads as before or after it,
/// and after it wherever the change was reported done.
fn cut_everywhere(
    before: impl Fn() -> MemoryStorage,
    change: impl Fn(&MemoryStorage) -> Result<(), StoreError>,
    check: impl Fn(&MemoryStorage, bool, u64),
) {
    let disk = before();
    let first = disk.operations();
    change(&disk).unwrap();
    let operations = disk.operations() - first;
    for cut in 0..=operations {
        for keep_unsynced in [false, true] {
            let disk = before();
            disk.power_off_at(disk.operations() + cut);
            let done = change(&disk).is_ok();
            assert_eq!(done, cut == operations);
            let after = if keep_unsynced { disk.after_kill() } else { disk.after_power_loss() };
            check(&after, done, cut);
        }
    }
}

#[test]
fn flags_change_wholly_or_not_at_all_even_over_damage() {
    let manifest = manifest(7);
    let dir = points_dir(&manifest.name);
    for damaged in [None, Some(PointFile::Manifest), Some(PointFile::Copy)] {
        let before = || {
            let disk = disk_with(&[&manifest]);
            if let Some(file) = damaged {
                disk.flip(&file.path(&dir, manifest.point), 20);
            }
            disk
        };
        let read = |disk: &MemoryStorage| {
            read_point(disk, &dir, manifest.point, PointFile::Manifest, REPOSITORY)
        };
        let change = |disk: &MemoryStorage| {
            set_flags(disk, &read(disk)?.expect("it is there"), PointFlags::PROTECTED)
        };
        cut_everywhere(before, change, |disk, done, cut| {
            let found = read(disk).unwrap_or_else(|error| panic!("cut {cut}: {error}")).unwrap();
            let flags = found.manifest.flags;
            assert!(!done || flags == PointFlags::PROTECTED, "cut {cut}");
            assert!(!done || found.fault.is_none(), "cut {cut}");
            assert!(!done || copy_fault(disk, &dir, &found.manifest).is_none(), "cut {cut}");
            assert_eq!(Manifest { flags: manifest.flags, ..found.manifest }, manifest, "cut {cut}");
        });
    }
}

#[test]
fn a_point_is_deleted_brought_back_and_purged_whatever_the_moment() {
    let (one, two) = (manifest(7), manifest(8));
    let dir = points_dir(&one.name);
    let points = [one.point];
    let delete =
        |disk: &MemoryStorage| rename(disk, &dir, &points, PointFile::Manifest, PointFile::Deleted);
    let deleted = || {
        let disk = disk_with(&[&one, &two]);
        delete(&disk).unwrap();
        disk.after_power_loss()
    };
    let state = |disk: &MemoryStorage| {
        assert_eq!(find(disk, &two).unwrap(), Some(two.clone()), "the other point is untouched");
        let live = list_points(disk, &dir).unwrap().contains(&one.point);
        let deleted = list_deleted(disk, &dir).unwrap().contains(&one.point);
        assert_eq!(find(disk, &one).unwrap().is_some(), live);
        let even = Manifest::find_even_deleted(disk, "web/01", one.point, REPOSITORY).unwrap();
        assert_eq!(even.is_some(), live || deleted);
        (live, deleted)
    };
    cut_everywhere(
        || disk_with(&[&one, &two]),
        delete,
        |disk, done, cut| {
            let (live, deleted) = state(disk);
            assert!(live != deleted && (deleted || !done), "cut {cut}");
        },
    );
    let undelete =
        |disk: &MemoryStorage| rename(disk, &dir, &points, PointFile::Deleted, PointFile::Manifest);
    cut_everywhere(deleted, undelete, |disk, done, cut| {
        let (live, deleted) = state(disk);
        assert!(live != deleted && (live || !done), "cut {cut}");
    });
    cut_everywhere(
        deleted,
        |disk| purge(disk, &dir, &points),
        |disk, done, cut| {
            let (live, deleted) = state(disk);
            assert!(!(live || deleted && done), "cut {cut}");
            purge(disk, &dir, &points).unwrap();
            assert_eq!(disk.files().len(), 2, "cut {cut}: {:?}", disk.files());
        },
    );
}
