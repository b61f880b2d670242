//! What must hold of an open repository, compared with the model.
//!
//! In: the open store. Out: nothing, or a panic that names point, disk and block. Every committed
//! point restores bit for bit; what is listed is what some session meant to commit; every durable
//! block of an unfinished session reads back; verify is clean.

use std::collections::HashSet;
use std::ops::ControlFlow;

use gantry_common::ids::{BlockId, PointId, SessionId};
use gantry_common::manage::VerifyOptions;
use gantry_dataplane::store::error::StoreError;
use gantry_dataplane::store::manifest::Manifest;
use gantry_dataplane::store::reader::StoreReader;
use gantry_dataplane::store::record::RecordDecoder;
use gantry_dataplane::store::storage::faulty::FaultyStorage;
use gantry_dataplane::store::verify::verify;

use super::backup::blocks_of;
use super::content::{self, KEY};
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

impl World {
    /// Compares the whole repository with the model, as after a crash. Nothing may fail here.
    pub fn check(&mut self) {
        self.see_points();
        let mut comparison = Comparison::new(self.store().reader());
        for (point, held) in self.points.all.clone() {
            if let Err(fault) = comparison.point(&held.name, point, &held.frozen) {
                panic!("{} of {} was committed, does not restore: {fault:?}", point, held.name);
            }
            self.stats.restored += 1;
        }
        for (session, backup) in &self.backups {
            for (disk, task) in backup.frozen.disks.iter().zip(&backup.disks) {
                for block in task.acknowledged.iter().flat_map(blocks_of) {
                    let (seed, len) = (disk.seed(block), disk.len_of(block));
                    let result = comparison.block(&content::id(seed, len), seed, len);
                    if let Err(fault) = result {
                        let disk = &disk.identity;
                        panic!("{session} {disk}: block {block} was durable: {fault:?}");
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
        for listed in listed {
            let point = listed.point;
            let manifest = match listed.manifest {
                Ok(manifest) => manifest,
                Err(error) => panic!("{point} is listed and cannot be read: {error}"),
            };
            let meant = self.backups.get(&manifest.session);
            let meant = meant.unwrap_or_else(|| panic!("{point} is of no session: {manifest:?}"));
            assert_eq!(point, meant.point, "{} makes one point", manifest.session);
            let frozen = std::sync::Arc::clone(&meant.frozen);
            if !self.points.all.contains_key(&point) {
                self.stats.seen_unreported += 1;
                let session = manifest.session;
                self.note(format!("{point} of {session} is there, and was not reported"));
                self.seen(session, point, &manifest.name, frozen);
            }
        }
    }

    fn seen(
        &mut self,
        session: SessionId,
        point: PointId,
        name: &str,
        frozen: std::sync::Arc<Frozen>,
    ) {
        self.points.commit(point, name, frozen);
        if let Some(backup) = self.backups.get_mut(&session) {
            backup.is_committed = true;
        }
        self.superseded(session);
    }

    /// Restores one committed point, with whatever goes on beside it.
    pub fn restore_some(&mut self) {
        let points: Vec<PointId> = self.points.all.keys().copied().collect();
        if points.is_empty() {
            return;
        }
        let point = points[self.random.usize(0..points.len())];
        let held = self.points.all[&point].clone();
        let result = Comparison::new(self.store().reader()).point(&held.name, point, &held.frozen);
        match result {
            Ok(()) => self.stats.restored += 1,
            Err(Fault::Said(_)) if self.is_cut() || self.is_faulty => {}
            Err(fault) => panic!("{point} of {} does not restore: {fault:?}", held.name),
        }
    }

    /// Verifies everything: nothing but what was spoilt on purpose is damaged.
    pub fn verify(&mut self) {
        let reader = self.store().reader();
        let now_ms = self.now_ms + 1;
        let go_on = &mut |_, _| ControlFlow::Continue(());
        match verify(&reader, &VerifyOptions::default(), now_ms, go_on) {
            Ok(report) => {
                let clean = report.is_clean();
                let excused = self.is_cut() || self.is_faulty;
                assert!(clean || excused, "verify finds damage that nobody did: {report:?}");
                self.stats.verified += 1;
            }
            Err(error) => assert!(self.is_cut() || self.is_faulty, "verify: {error}"),
        }
    }
}
