//! Random interleavings against a plain model: every view equals the model's copy of it.

use std::collections::BTreeMap;

use super::super::{DiskId, SnapshotId, Storage};
use super::{Lab, noise};

const DISK_SECTORS: u64 = 5 * 2048 + 3;
const STEPS: usize = 120;

struct Model {
    lab: Lab,
    rng: fastrand::Rng,
    live: BTreeMap<DiskId, Vec<u8>>,
    frozen: BTreeMap<SnapshotId, BTreeMap<DiskId, Vec<u8>>>,
}

impl Model {
    fn new(seed: u64) -> Model {
        let lab = Lab::new(seed);
        let datastores = ["vmfs5", "vmfs6"];
        let files = (0..2).map(|i| format!("[{}] vm/d{i}.vmdk", datastores[i]));
        let live = files.map(|file| {
            (lab.disk(&file, DISK_SECTORS * 512), vec![0; (DISK_SECTORS * 512) as usize])
        });
        let live = live.collect();
        Model { lab, rng: fastrand::Rng::with_seed(seed), live, frozen: BTreeMap::new() }
    }

    fn storage(&self) -> &Storage {
        &self.lab.storage
    }

    fn any_snapshot(&mut self) -> Option<SnapshotId> {
        let ids: Vec<SnapshotId> = self.frozen.keys().copied().collect();
        self.rng.choice(ids)
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..60 => self.write(),
            60..70 => self.discard(),
            70..82 => self.snapshot(),
            82..92 => self.remove(),
            92..96 => self.revert(),
            96..98 => self.reopen(),
            _ => {
                let disks: Vec<DiskId> = self.live.keys().copied().collect();
                self.storage().consolidate(&disks).unwrap();
                assert!(!self.storage().consolidation_needed(&disks).unwrap());
            }
        }
    }

    fn range(&mut self) -> (DiskId, u64, u64) {
        let disks: Vec<DiskId> = self.live.keys().copied().collect();
        let disk = disks[self.rng.usize(..disks.len())];
        let start = self.rng.u64(..DISK_SECTORS);
        let longest = *self.rng.choice(&[1, 20, 300, 3000]).unwrap();
        let length = self.rng.u64(1..=(DISK_SECTORS - start).min(longest));
        (disk, start * 512, length * 512)
    }

    fn write(&mut self) {
        let (disk, offset, length) = self.range();
        let bytes = noise(self.rng.u64(..), length as usize);
        self.storage().write(disk, offset, &bytes).unwrap();
        let place = offset as usize..(offset + length) as usize;
        self.live.get_mut(&disk).unwrap()[place].copy_from_slice(&bytes);
    }

    fn discard(&mut self) {
        let (disk, offset, length) = self.range();
        self.storage().discard(disk, offset, length).unwrap();
        let place = offset as usize..(offset + length) as usize;
        self.live.get_mut(&disk).unwrap()[place].fill(0);
    }

    fn snapshot(&mut self) {
        if self.frozen.len() >= 6 {
            return;
        }
        let mut disks: Vec<DiskId> = self.live.keys().copied().collect();
        if self.rng.u32(..4) == 0 {
            disks.truncate(1);
        }
        let id = self.storage().snapshot(&disks).unwrap();
        let views = disks.iter().map(|disk| (*disk, self.live[disk].clone())).collect();
        self.frozen.insert(id, views);
    }

    fn remove(&mut self) {
        let Some(id) = self.any_snapshot() else { return };
        let consolidate = self.rng.u32(..4) != 0;
        self.storage().remove_snapshot(id, consolidate).unwrap();
        self.frozen.remove(&id);
    }

    fn revert(&mut self) {
        let Some(id) = self.any_snapshot() else { return };
        self.storage().revert(id).unwrap();
        for (disk, view) in &self.frozen[&id] {
            self.live.insert(*disk, view.clone());
        }
    }

    /// What a killed and restarted simulator does.
    fn reopen(&mut self) {
        self.lab.storage = Storage::open(self.lab.folder.path(), 1).unwrap();
    }

    fn check(&self, context: &str) {
        for (disk, view) in &self.live {
            assert!(*view == self.lab.live(*disk), "{context}: live view of {disk}");
        }
        for (id, views) in &self.frozen {
            for (disk, view) in views {
                assert!(*view == self.lab.frozen(*id, *disk), "{context}: {disk} at {id}");
            }
        }
    }
}

#[test]
fn every_view_is_the_models_whatever_the_order() {
    for seed in 0..8 {
        let mut model = Model::new(seed);
        for step in 0..STEPS {
            model.step();
            if step % 6 == 0 {
                model.check(&format!("seed {seed}, step {step}"));
            }
        }
        for disk in model.live.keys() {
            model.lab.agrees_with_qemu(*disk, &format!("seed {seed}"));
        }
    }
}
