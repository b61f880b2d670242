//! The write stage: pack records through the store's own write queue, beside plain pwrite.
//!
//! In: the sample's stored lengths and bytes. Out: a [`Stage`]. Both write the same records past
//! the page cache into files of the pack's size and make each durable. No library claims a figure
//! for this, so there is no bar.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use gantry_common::ids::{RepositoryId, SessionId};
use gantry_common::limits;
use gantry_common::units::Compression;
use gantry_dataplane::payload::{Payload, PayloadPool};
use gantry_dataplane::store::record::{Origin, RecordHead, record_bytes};
use gantry_dataplane::store::storage::kernel::{KernelFile, KernelStorage};
use gantry_dataplane::store::storage::{OpenMode, Storage, StorageFile, WriteQueue};
use gantry_uring::buffer::PooledBuf;
use gantry_uring::direct::enable_direct;

use super::Bench;
use super::stored::{self, Stored};
use crate::measure::{Contender, Cost, Stage, Stopwatch, race};

/// Buffers in flight.
const SLOTS: usize = 16;
/// Bytes that a second of measurement writes.
const BYTES_PER_SECOND: f64 = 500e6;

/// What is written.
struct Records {
    blocks: Vec<Stored>,
    count: usize,
    pool: PayloadPool,
}

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<Stage> {
    let blocks = stored::compress(bench.sample, Compression::Optimal, bench.seconds_max())?;
    // As they stand in a pack: the shortest record takes 4 KiB.
    let bytes: u64 = blocks.iter().map(|block| record_bytes(block.bytes.len() as u32)).sum();
    let wanted = bench.seconds_max() * BYTES_PER_SECOND;
    let count = (wanted * blocks.len() as f64 / bytes as f64) as usize;
    let pool = PayloadPool::new(SLOTS, bench.block_bytes())?;
    let records = Records { count: count.max(blocks.len()), blocks, pool };
    records.fill()?;
    let storage = KernelStorage::new(bench.work.path());
    let store = || records.through_queue(&storage);
    let plain = || records.plainly(bench.work.path());
    let contenders = vec![
        Contender::new("store's queue", store),
        Contender::new("pwrite, one at a time", plain),
    ];
    race("write", None, bench.runs(), contenders)
}

impl Records {
    /// Puts real bytes into every slot; they stay there from write to write.
    fn fill(&self) -> Result<()> {
        let mut all = Vec::new();
        while let Some(mut payload) = self.pool.take(self.pool.payload_bytes_max()) {
            let mut room = payload.stored_mut();
            for block in &self.blocks {
                let len = block.bytes.len().min(room.len());
                room[..len].copy_from_slice(&block.bytes[..len]);
                room = &mut room[len..];
            }
            all.push(payload);
        }
        Ok(())
    }

    /// A slot with a record's header in front, and the record's length.
    fn record(&self, number: usize) -> Option<Result<(PooledBuf, usize)>> {
        let block = &self.blocks[number % self.blocks.len()];
        let payload: Payload = self.pool.take(block.bytes.len())?;
        let (mut buffer, len) = payload.into_parts();
        let origin = Origin { session: SessionId([0; 16]), task: 0, block: number as u64 };
        let made = u32::try_from(len).map_err(Into::into).map(|len| {
            let head = RecordHead::of_block(&block.head, len, origin);
            let head = head.encode(RepositoryId([0; 16]));
            buffer[..head.len()].copy_from_slice(&head);
            (buffer, record_bytes(len) as usize)
        });
        Some(made)
    }

    fn through_queue(&self, storage: &KernelStorage) -> Result<Cost> {
        let mut queue = storage.write_queue()?;
        let mut done = Vec::new();
        let mut settle = |queue: &mut <KernelStorage as Storage>::Queue| -> Result<()> {
            queue.complete(true, &mut done);
            done.drain(..).try_for_each(|completion| completion.result).context("writing a pack")
        };
        let stopwatch = Stopwatch::start();
        let mut pack: Option<(String, KernelFile, u64)> = None;
        let (mut packs, mut bytes) = (0, 0);
        let mut number = 0;
        while number < self.count {
            let Some(record) = self.record(number) else {
                settle(&mut queue)?;
                continue;
            };
            let (buffer, len) = record?;
            let (_, file, offset) = match &mut pack {
                Some(pack) => pack,
                none => {
                    packs += 1;
                    let name = format!("{packs}.pack");
                    let file = storage.open(&name, OpenMode::CreatePack)?;
                    // A file system that cannot reserve writes without.
                    let _ = file.allocate(limits::PACK_BYTES_TARGET);
                    none.insert((name, file, 0))
                }
            };
            queue.submit_write(file, *offset, buffer, len, number as u64);
            *offset += len as u64;
            bytes += len as u64;
            number += 1;
            if *offset >= limits::PACK_BYTES_TARGET || number == self.count {
                while queue.in_flight() > 0 {
                    settle(&mut queue)?;
                }
                queue.submit_sync(file, u64::MAX);
                settle(&mut queue)?;
                let finished = pack.take().map(|(name, ..)| name);
                finished.map_or(Ok(()), |name| storage.remove(&name))?;
            }
        }
        Ok(stopwatch.cost(bytes))
    }

    fn plainly(&self, folder: &std::path::Path) -> Result<Cost> {
        let path = folder.join("plain.pack");
        let stopwatch = Stopwatch::start();
        let mut pack: Option<(File, u64)> = None;
        let mut bytes = 0;
        for number in 0..self.count {
            let (buffer, len) = self.record(number).context("no buffer")??;
            let (file, offset) = match &mut pack {
                Some(pack) => pack,
                none => {
                    let mut options = OpenOptions::new();
                    let file = options.read(true).write(true).create_new(true).open(&path)?;
                    enable_direct(&file)?;
                    let bytes = limits::PACK_BYTES_TARGET;
                    let _ =
                        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
                    none.insert((file, 0))
                }
            };
            file.write_all_at(&buffer[..len], *offset)?;
            *offset += len as u64;
            bytes += len as u64;
            if *offset >= limits::PACK_BYTES_TARGET || number + 1 == self.count {
                file.sync_data()?;
                pack = None;
                std::fs::remove_file(&path)?;
            }
        }
        Ok(stopwatch.cost(bytes))
    }
}
