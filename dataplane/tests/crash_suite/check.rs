//! What must hold of an open repository, compared with the model.
//!
//! In: the open store. Out: nothing, or a panic that names point, disk and block. Every committed
//! point restores bit for bit; what is listed is what some session meant to commit; every durable
//! block of an unfinished session reads back; verify is clean.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use gantry_common::ids::{BlockId, PointId};
use gantry_common::manage::{VerifyOptions, VerifyReport};
use gantry_dataplane::store::error::StoreError;
use gantry_dataplane::store::manifest::Manifest;
use gantry_dataplane::store::reader::StoreReader;
use gantry_dataplane::store::record::RecordDecoder;
use gantry_dataplane::store::repo::ReadPin;
use gantry_dataplane::store::storage::faulty::FaultyStorage;
use gantry_dataplane::store::verify::verify;

use super::backup::blocks_of;
use super::content::{self, KEY};
use super::model::State;
use super::vm::{Disk, Frozen};
use super::world::World;

type Reader = StoreReader<FaultyStorage>;

/// Why a comparison did not succeed.
#[derive(Debug)]
enum Fault {
    /// The store says that it cannot, and does not give anything.
    Said(String),
    /// The store gives something else: never right.
    Wrong(String),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Said(error.to_string())
    }
}

/// Reads blocks once each: contents that were found right are remembered for one check.
struct Comparison {
    reader: Reader,
    decoder: RecordDecoder,
    right: HashSet<BlockId>,
}

impl Comparison {
    fn new(reader: Reader) -> Comparison {
        Comparison { reader, decoder: RecordDecoder::new(KEY), right: HashSet::new() }
    }

    fn block(&mut self, id: &BlockId, seed: u64, len: u32) -> Result<(), Fault> {
        if seed == 0 || self.right.contains(id) {
            return Ok(());
        }
        if self.reader.read_block(&mut self.decoder, id)? != content::block(seed, len).raw {
            return Err(Fault::Wrong("other bytes".into()));
        }
        self.right.insert(*id);
        Ok(())
    }

    fn disk(&mut self, manifest: &Manifest, disk: &Disk) -> Result<(), Fault> {
        let held = manifest.disks.iter().find(|held| held.identity == disk.identity);
        let held = held.ok_or_else(|| Fault::Wrong("the disk is not in it".into()))?;
        let ids = self.reader.leaf(held, 0)?;
        if held.size_bytes != disk.size_bytes || ids.len() as u64 != disk.blocks() {
            return Err(Fault::Wrong(format!("{} bytes", held.size_bytes)));
        }
        for (block, id) in (0..).zip(&ids) {
            let (seed, len) = (disk.seed(block), disk.len_of(block));
            if *id != content::id(seed, len) {
                return Err(Fault::Wrong(format!("block {block} has the id {id}")));
            }
            self.block(id, seed, len).map_err(|fault| match fault {
                Fault::Said(what) => Fault::Said(format!("block {block}: {what}")),
                Fault::Wrong(what) => Fault::Wrong(format!("block {block}: {what}")),
            })?;
        }
        Ok(())
    }

    fn point(&mut self, name: &str, point: PointId, frozen: &Frozen) -> Result<(), Fault> {
        let manifest = self.reader.manifest(name, Some(point))?;
        if manifest.disks.len() != frozen.disks.len() {
            return Err(Fault::Wrong(format!("{} disks", manifest.disks.len())));
        }
        for disk in &frozen.disks {
            self.disk(&manifest, disk).map_err(|fault| match fault {
                Fault::Said(what) => Fault::Said(format!("{}: {what}", disk.identity)),
                Fault::Wrong(what) => Fault::Wrong(format!("{}: {what}", disk.identity)),
            })?;
        }
        Ok(())
    }
}

/// A restore that goes on while other things happen: its point is pinned.
#[derive(Debug)]
pub struct Restoring {
    manifest: Manifest,
    frozen: Arc<Frozen>,
    _pin: ReadPin<FaultyStorage>,
}

impl World {
    /// Compares the whole repository with the model, as after a crash. Nothing may fail here.
    pub fn check(&mut self) {
        self.see_points();
        let mut comparison = Comparison::new(self.store().reader());
        for point in self.points.that_are(State::Live) {
            let held = self.points.all[&point].clone();
            match comparison.point(&held.name, point, &held.frozen) {
                Ok(()) => {}
                Err(Fault::Said(_)) if self.points.is_damaged => {}
                Err(fault) => {
                    panic!("{point} of {} was committed, does not restore: {fault:?}", held.name)
                }
            }
            self.stats.restored += 1;
        }
        for (session, backup) in &self.backups {
            for (disk, task) in backup.frozen.disks.iter().zip(&backup.disks) {
                for block in task.acknowledged.iter().flat_map(blocks_of) {
                    let (seed, len) = (disk.seed(block), disk.len_of(block));
                    match comparison.block(&content::id(seed, len), seed, len) {
                        Ok(()) => {}
                        Err(Fault::Said(_)) if self.points.is_damaged => {}
                        Err(fault) => {
                            let disk = &disk.identity;
                            panic!("{session} {disk}: block {block} was durable: {fault:?}");
                        }
                    }
                    self.stats.durable_checked += 1;
                }
            }
        }
        if self.random.u8(0..3) == 0 {
            self.verify();
        }
    }

    /// Takes in the points that are listed. One that was never reported may be there, whole.
    fn see_points(&mut self) {
        let listed = self.store().reader().all_points().expect("the points can be listed");
        let live: Vec<PointId> = listed.iter().map(|listed| listed.point).collect();
        for listed in listed {
            let point = listed.point;
            let manifest = match listed.manifest {
                Ok(manifest) => manifest,
                Err(_) if self.points.is_damaged => continue,
                Err(error) => panic!("{point} is listed and cannot be read: {error}"),
            };
            let meant = self.backups.get(&manifest.session);
            let meant = meant.unwrap_or_else(|| panic!("{point} is of no session: {manifest:?}"));
            assert_eq!(point, meant.point, "{} makes one point", manifest.session);
            let frozen = Arc::clone(&meant.frozen);
            if !self.points.all.contains_key(&point) {
                self.stats.seen_unreported += 1;
                let session = manifest.session;
                self.note(format!("{point} of {session} is there, and was not reported"));
                self.points.commit(point, &manifest.name, frozen);
                if let Some(backup) = self.backups.get_mut(&session) {
                    backup.is_committed = true;
                }
                self.superseded(session);
            }
        }
        self.see_deleted(&live);
    }

    /// Each of these points restores, if it is not deleted, whatever was spoilt.
    pub fn restores_strictly(&mut self, points: &[PointId]) {
        let mut comparison = Comparison::new(self.store().reader());
        for point in points.iter().filter(|point| self.points.is_live(**point)) {
            let held = &self.points.all[point];
            if let Err(fault) = comparison.point(&held.name, *point, &held.frozen) {
                panic!("{point} of {} was made after the damage: {fault:?}", held.name);
            }
        }
    }

    /// Begins to restore a point, or ends a restore that goes on.
    pub fn restore_some(&mut self) {
        if !self.restores.is_empty() && self.random.bool() {
            let at = self.random.usize(0..self.restores.len());
            let restoring = self.restores.swap_remove(at);
            return self.restore_rest(restoring);
        }
        let points = self.points.that_are(State::Live);
        if points.is_empty() {
            return;
        }
        let point = points[self.random.usize(0..points.len())];
        let held = self.points.all[&point].clone();
        match self.store().reader().open_point(&held.name, Some(point)) {
            Ok((manifest, pin)) => {
                let restoring = Restoring { manifest, frozen: held.frozen, _pin: pin };
                match self.random.bool() {
                    true => self.restores.push(restoring),
                    false => self.restore_rest(restoring),
                }
            }
            Err(_) if self.may_fail() || self.points.is_damaged => {}
            Err(error) => panic!("{point} of {} does not open: {error}", held.name),
        }
    }

    fn restore_rest(&mut self, restoring: Restoring) {
        let point = restoring.manifest.point;
        let mut comparison = Comparison::new(self.store().reader());
        for disk in &restoring.frozen.disks {
            match comparison.disk(&restoring.manifest, disk) {
                Ok(()) => {}
                Err(Fault::Said(_)) if self.may_fail() || self.points.is_damaged => {}
                Err(fault) => panic!("{point} does not restore: {fault:?}"),
            }
        }
        self.stats.restored += 1;
    }

    /// Verifies everything: nothing but what was spoilt on purpose is damaged.
    pub fn verify(&mut self) {
        let Some(report) = self.verify_once() else { return };
        if report.is_clean() {
            return;
        }
        // A collection may leave a dead copy without an entry: it is found once, and then known.
        let is_left_copy = report.damages == 0 && report.hits.is_empty() && self.has_collected;
        assert!(is_left_copy, "verify finds damage that nobody did: {report:?}");
        let again = self.verify_once();
        let is_clean = again.as_ref().is_none_or(VerifyReport::is_clean);
        assert!(is_clean, "verify finds the same again: {again:?}");
    }

    /// A verification's report, if damage would be a fault.
    fn verify_once(&mut self) -> Option<VerifyReport> {
        let reader = self.store().reader();
        let now_ms = self.now_ms + 1;
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let result = verify(&reader, &VerifyOptions::default(), now_ms, go_on);
        // What it found reaches the index with the next poll.
        self.poll();
        let excused = self.may_fail() || self.points.is_damaged;
        match result {
            Ok(report) => {
                self.stats.verified += 1;
                (!excused).then_some(report)
            }
            Err(error) => {
                assert!(excused, "verify: {error}");
                None
            }
        }
    }
}
