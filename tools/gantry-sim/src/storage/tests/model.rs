//! Random interleavings against a plain model: every view equals the model's copy of it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::{
    AREAS_PER_PAGE, ChangeTrackingFault, DiskId, HotAdded, SnapshotId, Storage, StorageError,
};
use super::{Lab, noise};

/// More than one COWD table, and no whole grain of seSparse at the end.
const DISK_SECTORS: u64 = 5 * 1024 + 3;
const STEPS: usize = 100;

struct Model {
    lab: Lab,
    rng: fastrand::Rng,
    live: BTreeMap<DiskId, Vec<u8>>,
    frozen: BTreeMap<SnapshotId, BTreeMap<DiskId, Vec<u8>>>,
    /// Change ids that a backup product would remember, with the content they stand for.
    points: Vec<(DiskId, String, Vec<u8>)>,
    attached: Vec<(HotAdded, Vec<u8>)>,
    /// Answers about changes that were compared with the truth, so that none is not taken for good.
    compared: usize,
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
        let rng = fastrand::Rng::with_seed(seed);
        let model = Model {
            lab,
            rng,
            live,
            frozen: BTreeMap::new(),
            points: Vec::new(),
            attached: Vec::new(),
            compared: 0,
        };
        for disk in model.live.keys() {
            model.storage().enable_cbt(*disk).unwrap();
        }
        model
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
            0..50 => self.write(),
            50..60 => self.discard(),
            60..74 => self.snapshot(),
            74..84 => self.remove(),
            84..86 => self.revert(),
            86..88 => self.reopen(),
            88..92 => self.attach(),
            92..95 => self.detach(),
            95 => {
                let disks: Vec<DiskId> = self.live.keys().copied().collect();
                self.storage().reset_cbt(disks[0]).unwrap();
            }
            _ => {
                let disks: Vec<DiskId> = self.live.keys().copied().collect();
                self.storage().consolidate(&disks).unwrap();
                let needed = self.storage().consolidation_needed(&disks).unwrap();
                assert!(!needed || !self.attached.is_empty());
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
        for frozen in self.storage().snapshot_info(id).unwrap().disks {
            let change_id = frozen.change_id.expect("tracking was enabled before all snapshots");
            self.points.push((frozen.disk, change_id, self.live[&frozen.disk].clone()));
        }
        let old = self.points.len().saturating_sub(6);
        self.points.drain(..old);
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

    fn attach(&mut self) {
        let Some(id) = self.any_snapshot() else { return };
        let info = self.storage().snapshot_info(id).unwrap();
        let frozen = &info.disks[self.rng.usize(..info.disks.len())];
        let proxy = format!("proxy-{}", self.rng.u32(..2));
        match self.storage().hot_add(&frozen.file, &proxy) {
            // Whatever happens to the snapshot from now on, the proxy sees this content.
            Ok(added) => self.attached.push((added, self.frozen[&id][&frozen.disk].clone())),
            Err(StorageError::Exists { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }

    fn detach(&mut self) {
        let Some((added, _)) = self.attached.pop() else { return };
        self.storage().hot_remove(&added.file, &added.proxy).unwrap();
        assert!(!added.path.exists());
    }

    /// What a killed and restarted simulator does.
    fn reopen(&mut self) {
        self.lab.storage = Storage::open(self.lab.folder.path(), 1).unwrap();
    }

    fn check(&mut self, context: &str) {
        for (disk, view) in &self.live {
            assert!(*view == self.lab.live(*disk), "{context}: live view of {disk}");
        }
        for (id, views) in &self.frozen {
            for (disk, view) in views {
                assert!(*view == self.lab.frozen(*id, *disk), "{context}: {disk} at {id}");
            }
        }
        for (added, view) in &self.attached {
            let seen = std::fs::read(&added.path).unwrap();
            assert!(*view == seen, "{context}: {} at {}", added.file, added.proxy);
        }
        self.check_changes(context);
    }

    /// No change since a remembered change id is missing from any snapshot's answer.
    fn check_changes(&mut self, context: &str) {
        for (id, views) in &self.frozen {
            let info = self.storage().snapshot_info(*id).unwrap();
            for frozen in &info.disks {
                let now = &views[&frozen.disk];
                let zeros = vec![0; now.len()];
                let mine = self.points.iter().filter(|(disk, ..)| *disk == frozen.disk);
                let everything = [("*", &zeros)];
                let points = mine.map(|(_, id, then)| (id.as_str(), then)).chain(everything);
                for (change_id, then) in points {
                    let what = format!("{context}: {} at {id} since {change_id}", frozen.disk);
                    match query(self.storage(), frozen.disk, *id, change_id) {
                        Ok(areas) => {
                            covers(&areas, then, now, &what);
                            self.compared += 1;
                        }
                        Err(fault) => {
                            let ours = frozen.change_id.as_deref().unwrap();
                            expected(&fault, change_id, ours, &what);
                        }
                    }
                }
            }
        }
    }
}

/// All pages of a query.
pub(super) fn query(
    storage: &Storage,
    disk: DiskId,
    snapshot: SnapshotId,
    change_id: &str,
) -> Result<Vec<Range<u64>>, ChangeTrackingFault> {
    let capacity_bytes = storage.disk(disk).unwrap().capacity_bytes;
    let (mut at, mut areas) = (0, Vec::new());
    while at < capacity_bytes {
        match storage.changed_areas(disk, snapshot, at, change_id) {
            Ok(page) => {
                assert!(page.start_offset == at && page.length > 0);
                assert!(page.areas.len() <= AREAS_PER_PAGE);
                areas.extend(page.areas.iter().map(|area| area.start..area.start + area.length));
                at += page.length;
            }
            Err(StorageError::ChangeTracking { fault, .. }) => return Err(fault),
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(at, capacity_bytes);
    assert!(areas.is_sorted_by(|a, b| a.end <= b.start), "areas overlap or go back");
    Ok(areas)
}

/// Outside of `areas`, `then` and `now` are the same.
pub(super) fn covers(areas: &[Range<u64>], then: &[u8], now: &[u8], what: &str) {
    let mut at = 0;
    let gaps = areas.iter().map(|area| {
        let gap = at..area.start as usize;
        at = area.end as usize;
        gap
    });
    let mut gaps: Vec<Range<usize>> = gaps.collect();
    gaps.push(at..now.len());
    for gap in gaps {
        assert!(then[gap.clone()] == now[gap.clone()], "{what}: a change in {gap:?} is missing");
    }
}

/// The query may only be refused for a reason that holds.
fn expected(fault: &ChangeTrackingFault, given: &str, ours: &str, what: &str) {
    let split = |id: &str| {
        let (uuid, sequence) = id.rsplit_once('/').unwrap();
        (uuid.to_owned(), sequence.parse::<u64>().unwrap())
    };
    let right = match fault {
        // The period was reset, which forgets the maps of older snapshots.
        ChangeTrackingFault::NotActive => true,
        ChangeTrackingFault::UnknownId { .. } => split(given).0 != split(ours).0,
        ChangeTrackingFault::FutureId { .. } => split(given).1 > split(ours).1,
        _ => false,
    };
    assert!(right, "{what}: {fault}, ours is {ours}");
}

#[test]
fn every_view_is_the_models_whatever_the_order() {
    let mut compared = 0;
    for seed in 0..6 {
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
        compared += model.compared;
    }
    assert!(compared > 300, "only {compared} answers about changes were compared");
}
