//! Tests of the disk engine: against a plain model in memory, and against qemu-img.

use std::path::Path;
use std::process::Command;

use super::{DatastoreKind, DatastorePath, DiskId, DiskSpec, SnapshotId, Storage, StorageError};

mod chains;
mod faults;
mod guests;
mod kills;
mod model;
mod tracking;

/// A storage in a private folder, with a datastore of each kind.
pub(super) struct Lab {
    pub(super) folder: tempfile::TempDir,
    pub(super) storage: Storage,
}

impl Lab {
    pub(super) fn new(seed: u64) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path(), seed).unwrap();
        storage.add_datastore("vmfs5", DatastoreKind::Vmfs5).unwrap();
        storage.add_datastore("vmfs6", DatastoreKind::Vmfs6).unwrap();
        storage.add_datastore("nfs", DatastoreKind::Nfs).unwrap();
        storage.add_datastore("vsan", DatastoreKind::Vsan).unwrap();
        Lab { folder, storage }
    }

    pub(super) fn disk(&self, file: &str, capacity_bytes: u64) -> DiskId {
        let file = file.parse().unwrap();
        let spec = DiskSpec { file, capacity_bytes, image: None, uuid: None, thin: true };
        self.storage.create_disk(&spec).unwrap()
    }

    pub(super) fn live(&self, disk: DiskId) -> Vec<u8> {
        let mut bytes = vec![0; self.storage.disk(disk).unwrap().capacity_bytes as usize];
        self.storage.read(disk, 0, &mut bytes).unwrap();
        bytes
    }

    pub(super) fn frozen(&self, snapshot: SnapshotId, disk: DiskId) -> Vec<u8> {
        let mut bytes = vec![0; self.storage.disk(disk).unwrap().capacity_bytes as usize];
        self.storage.read_frozen(snapshot, disk, 0, &mut bytes).unwrap();
        bytes
    }

    /// What QEMU reads from a descriptor and the chain that it names.
    pub(super) fn qemu(&self, file: &DatastorePath) -> Vec<u8> {
        qemu_raw(&file.under(self.folder.path()), "vmdk", self.folder.path())
    }

    /// What Gantry's own reader makes of it.
    fn gantry(&self, file: &DatastorePath) -> Vec<u8> {
        let image = gantry_vmdk::Image::open(&file.under(self.folder.path()), &Default::default());
        let image = image.unwrap();
        let mut bytes = vec![0; image.size_bytes() as usize];
        image.read_at(0, &mut bytes).unwrap();
        bytes
    }

    /// Our view of the live link and of every snapshot is what QEMU, and Gantry's reader, read from
    /// the files.
    pub(super) fn agrees_with_qemu(&self, disk: DiskId, context: &str) {
        let live = &self.storage.disk(disk).unwrap().chain[0].file;
        assert!(self.live(disk) == self.qemu(live), "{context}: QEMU differs on {live}");
        assert!(self.live(disk) == self.gantry(live), "{context}: Gantry differs on {live}");
        for id in self.storage.snapshots() {
            let snapshot = self.storage.snapshot_info(id).unwrap();
            for frozen in snapshot.disks.iter().filter(|f| f.disk == disk) {
                let same = self.frozen(id, disk) == self.qemu(&frozen.file);
                assert!(same, "{context}: QEMU differs on {} of {id}", frozen.file);
            }
        }
    }
}

/// Converts any image to raw with qemu-img.
pub(super) fn qemu_raw(path: &Path, format: &str, scratch: &Path) -> Vec<u8> {
    let raw = scratch.join("qemu.raw");
    let run = Command::new("qemu-img")
        .args(["convert", "-U", "-f", format, "-O", "raw"])
        .args([path, &raw])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "qemu-img of {}: {text}", path.display());
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// Bytes that differ from place to place and from seed to seed.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// True if the refusal is that somebody holds the file.
pub(super) fn is_locked<T: std::fmt::Debug>(result: Result<T, StorageError>) -> bool {
    matches!(result, Err(StorageError::Locked { .. }))
}
