//! The VMs that are backed up: disks of a few blocks that change between snapshots.
//!
//! In: random numbers. Out: frozen states. Contents come from a small set of seeds, so that disks
//! and VMs share blocks; sizes end in the middle of a block now and then.

use std::sync::Arc;

use fastrand::Rng;
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{BaseChoice, DiskOffer, SessionOffer};

pub const BLOCK: BlockSize = BlockSize::K256;
const BLOCK_BYTES: u64 = 256 << 10;
/// Bytes of a last block that is short.
const TAIL_BYTES: u64 = 5000;

/// A disk's content, block by block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub identity: String,
    pub size_bytes: u64,
    pub seeds: Vec<u64>,
}

impl Disk {
    pub fn blocks(&self) -> u64 {
        self.seeds.len() as u64
    }

    pub fn len_of(&self, block: u64) -> u32 {
        BLOCK.block_len(block, self.size_bytes)
    }

    pub fn seed(&self, block: u64) -> u64 {
        self.seeds.get(block as usize).copied().unwrap_or(0)
    }

    fn resize(&mut self, blocks: usize, has_tail: bool, random: &mut Rng) {
        self.seeds.resize_with(blocks, || draw_seed(random));
        let short = if has_tail { BLOCK_BYTES - TAIL_BYTES } else { 0 };
        self.size_bytes = blocks as u64 * BLOCK_BYTES - short;
    }
}

/// A state of all disks of a VM that does not change any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Frozen {
    pub snapshot: String,
    pub disks: Vec<Disk>,
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    pub name: String,
    disks: Vec<Disk>,
    snapshots: u32,
    /// The newest snapshot.
    pub frozen: Option<Arc<Frozen>>,
}

fn draw_seed(random: &mut Rng) -> u64 {
    // Zeros, contents that everybody has, and some that few have.
    match random.u8(0..10) {
        0..3 => 0,
        3..7 => random.u64(1..8),
        _ => random.u64(8..60),
    }
}

impl Vm {
    pub fn new(number: usize, random: &mut Rng) -> Vm {
        let mut disks = Vec::new();
        for disk in 0..random.usize(1..=2) {
            let mut made =
                Disk { identity: format!("disk-{disk}"), size_bytes: 0, seeds: Vec::new() };
            made.resize(random.usize(1..7), random.bool(), random);
            disks.push(made);
        }
        Vm { name: format!("vm{number}"), disks, snapshots: 0, frozen: None }
    }

    /// A VM with these contents, already frozen.
    pub fn of(number: usize, disks: &[&[u64]]) -> Vm {
        let disk = |(number, seeds): (usize, &&[u64])| Disk {
            identity: format!("disk-{number}"),
            size_bytes: seeds.len() as u64 * BLOCK_BYTES,
            seeds: seeds.to_vec(),
        };
        let disks: Vec<Disk> = disks.iter().enumerate().map(disk).collect();
        let frozen = Arc::new(Frozen { snapshot: "snapshot-0".into(), disks: disks.clone() });
        Vm { name: format!("vm{number}"), disks, snapshots: 0, frozen: Some(frozen) }
    }

    /// Lets time pass and takes a snapshot.
    pub fn freeze(&mut self, random: &mut Rng) -> Arc<Frozen> {
        for disk in &mut self.disks {
            if random.u8(0..8) == 0 {
                disk.resize(random.usize(1..7), random.bool(), random);
            }
            for seed in &mut disk.seeds {
                if random.u8(0..4) == 0 {
                    *seed = draw_seed(random);
                }
            }
        }
        self.snapshots += 1;
        let snapshot = format!("snapshot-{}", self.snapshots);
        let frozen = Arc::new(Frozen { snapshot, disks: self.disks.clone() });
        self.frozen = Some(Arc::clone(&frozen));
        frozen
    }
}

/// What a source offers of a frozen state.
pub fn offer(name: &str, frozen: &Frozen, created_ms: u64, base: BaseChoice) -> SessionOffer {
    let disk = |disk: &Disk| DiskOffer {
        identity: disk.identity.clone(),
        label: format!("{}.img", disk.identity),
        size_bytes: disk.size_bytes,
        block_size: BLOCK,
        snapshot: frozen.snapshot.clone(),
        read_digest: [0; 32],
        base,
        change_id: None,
    };
    SessionOffer {
        name: name.into(),
        disks: frozen.disks.iter().map(disk).collect(),
        compression: Compression::Optimal,
        created_ms,
        vm_config: vec![1; 40],
        retention: None,
    }
}
