//! ext2, ext3 and ext4: what is free, what is excluded, in every state that a replay may lead to.
//!
//! In: a volume. Out: a [`GuestFs`]. Invariants: a block is free only if it is free at its place and in
//! every committed copy of its bitmap in the journal (the union rule; on-disk bitmaps alone lose live
//! data, see GUESTFS.md §2); content of files is named only where no replay is needed. Must not: write,
//! or fall back from what it does not understand. Own reader: no crate knows bitmaps, journal and maps
//! of blocks together, read-only and at random.

mod superblock;
mod image;
mod journal;
mod groups;
mod inode;
mod folder;
mod files;

use std::cell::RefCell;
use std::collections::HashSet;

use crate::disk::Disk;
use crate::limits;
use crate::volume::{Consistency, Extent, FileMasks, FileRange, GuestFs, Refused};
use groups::Group;
use image::Image;
use inode::Inode;
use journal::Journal;
use superblock::Superblock;

const ROOT_INODE: u32 = 2;

/// An open ext4.
pub struct Ext4<'a> {
    image: Image<'a>,
    groups: Vec<Group>,
    consistency: Consistency,
    /// Inodes whose content was given to be dropped: not used as a sample of what is in use.
    given: RefCell<HashSet<u32>>,
}

impl<'a> Ext4<'a> {
    /// Opens it, and reads its journal if it is to be replayed.
    ///
    /// # Errors
    /// It is damaged, notes errors, or has a feature or a journal that is not understood.
    pub fn open(volume: &'a dyn Disk) -> Result<Ext4<'a>, Refused> {
        let mut bytes = [0; superblock::BYTES];
        volume.read_at(superblock::OFFSET, &mut bytes)?;
        let superblock = Superblock::parse(&bytes, volume.length())?;
        if superblock::has_external_journal(&bytes)? {
            return Err(Refused::new("it has a feature that is not filtered: an external journal"));
        }
        let mut image = Image { volume, superblock, journal: Journal::default() };
        let consistency = match (image.superblock.has_journal, image.superblock.needs_recovery) {
            (false, false) if image.superblock.valid => Consistency::Clean,
            (false, _) => Consistency::Unsafe("it has no journal and is mounted".to_owned()),
            (true, recover) => {
                let journal = read_journal(&image)?;
                match (recover, journal) {
                    (false, Some(_)) => {
                        return Err(Refused::new(
                            "its journal is not empty, but not to be replayed",
                        ));
                    }
                    (false, None) => Consistency::Clean,
                    (true, journal) => {
                        image.journal = journal.unwrap_or_default();
                        same_after_replay(&image)?;
                        Consistency::Replayable
                    }
                }
            }
        };
        let groups = groups::read_all(&image)?;
        Ok(Ext4 { image, groups, consistency, given: RefCell::default() })
    }

    fn inode(&self, number: u32) -> Result<Inode, Refused> {
        Inode::read(&self.image, &self.groups, number)
    }

    fn entries(
        &self,
        folder: &Inode,
        give: &mut dyn FnMut(folder::Entry) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        folder::entries(&self.image, folder, give)
    }

    /// Refuses to name free blocks where what is on disk and in the journal does not tell.
    fn gate_blocks(&self) -> Result<(), Refused> {
        match &self.consistency {
            Consistency::Clean | Consistency::Quiesced | Consistency::Replayable => Ok(()),
            Consistency::Unsafe(why) => Err(Refused::new(why.clone())),
        }
    }

    /// Refuses to name content of files before a replay: nothing like the union rule holds for it.
    fn gate_files(&self) -> Result<(), Refused> {
        if self.consistency == Consistency::Replayable {
            let text = "its journal is not replayed; quiesce the snapshot to filter files";
            return Err(Refused::new(text));
        }
        self.gate_blocks()
    }

    /// Gives what is free by the union rule.
    fn free_blocks(&self, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        let superblock = &self.image.superblock;
        let worth = limits::RANGE_BYTES_MIN.div_ceil(superblock.block_bytes);
        let mut run = (0, 0);
        let mut end_run = |run: &mut (u64, u64)| -> Result<(), Refused> {
            if run.1 >= worth {
                give(self.image.bytes(run.0, run.1)?);
            }
            run.1 = 0;
            Ok(())
        };
        for (group, number) in self.groups.iter().zip(0..) {
            let Some(used) = groups::used_blocks(&self.image, number, group)? else {
                end_run(&mut run)?;
                continue;
            };
            let start = superblock.first_block + number * superblock.group_blocks;
            for bit in 0..groups::blocks_in(superblock, number) {
                if groups::is_set(&used, bit) {
                    end_run(&mut run)?;
                } else if run.1 == 0 {
                    run = (start + bit, 1);
                } else {
                    run.1 += 1;
                }
            }
        }
        end_run(&mut run)
    }

    /// Gives the metadata at fixed places and the journal.
    fn metadata(&self, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        let (image, superblock) = (&self.image, &self.image.superblock);
        let head = superblock.first_block + 1 + groups::table_blocks(superblock);
        give(image.bytes(0, head)?);
        let table = groups::inode_table_blocks(superblock);
        for group in &self.groups {
            give(image.bytes(group.block_bitmap, 1)?);
            give(image.bytes(group.inode_bitmap, 1)?);
            give(image.bytes(group.inode_table, table)?);
        }
        if superblock.has_journal {
            self.blocks_of(&self.inode(superblock.journal_inode)?, give)?;
        }
        Ok(())
    }

    fn blocks_of(&self, inode: &Inode, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        inode.runs(&self.image, &mut |run| {
            give(self.image.bytes(run.block, run.count)?);
            Ok(())
        })
    }

    /// Gives the content of files in use, chosen at random.
    fn samples(&self, seed: u64, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        let superblock = &self.image.superblock;
        let mut state = seed;
        for _ in 0..limits::SAMPLED_FILES_MAX {
            let group = (random(&mut state) % self.groups.len() as u64) as usize;
            if self.groups[group].inodes_unset {
                continue;
            }
            let bitmap = self.image.block(self.groups[group].inode_bitmap)?;
            let from = random(&mut state) % u64::from(superblock.group_inodes);
            let all = u64::from(superblock.group_inodes);
            let mut bits = (from..all).chain(0..from);
            let Some(bit) = bits.find(|bit| groups::is_set(&bitmap, *bit)) else { continue };
            let number = group as u64 * all + bit + 1;
            // Within the file system's inodes, whose count is of 32 bits.
            let number = number as u32;
            if number < superblock.first_inode && number != ROOT_INODE
                || self.given.borrow().contains(&number)
            {
                continue;
            }
            let inode = self.inode(number)?;
            if inode.links > 0 && inode.has_blocks() {
                self.blocks_of(&inode, give)?;
            }
        }
        Ok(())
    }
}

/// SplitMix64: which files are samples must follow from the seed alone.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The journal, if anything is in it.
fn read_journal(image: &Image) -> Result<Option<Journal>, Refused> {
    let superblock = &image.superblock;
    if superblock.journal_inode == 0 || superblock.journal_inode >= superblock.group_inodes {
        return Err(Refused::new("its journal is not where it should be"));
    }
    // Its place never changes while it is in use, so replay has no say in it.
    let first = groups::first_on_disk(image)?;
    let inode = Inode::read(image, &[first], superblock.journal_inode)?;
    let runs = inode.all_runs(image)?;
    let place = |number: u64| {
        let after = runs.partition_point(|run| run.logical <= number);
        let run = after.checked_sub(1).and_then(|before| runs.get(before));
        let found = run.filter(|run| number - run.logical < run.count);
        let wrong = || Refused::new("its journal has a hole");
        found.map(|run| run.block + (number - run.logical)).ok_or_else(wrong)
    };
    let blocks = inode.size / superblock.block_bytes;
    journal::read_log(superblock.block_bytes, blocks, superblock.blocks, &place, &|block| {
        image.block_on_disk(block)
    })
}

/// Refuses a file system that a replay would give another size or other features (a resize), or that
/// notes errors in its journal.
fn same_after_replay(image: &Image) -> Result<(), Refused> {
    let block_bytes = image.superblock.block_bytes;
    let block = image.block(superblock::OFFSET / block_bytes)?;
    let at = (superblock::OFFSET % block_bytes) as usize;
    let after = Superblock::parse(&block[at..at + superblock::BYTES], image.volume.length())?;
    if !image.superblock.same_geometry(&after) {
        return Err(Refused::new("its size or features change when its journal is replayed"));
    }
    Ok(())
}

impl GuestFs for Ext4<'_> {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn identity(&self) -> String {
        self.image.superblock.identity.clone()
    }

    fn consistency(&self) -> Consistency {
        self.consistency.clone()
    }

    fn free(&self, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        self.gate_blocks()?;
        self.free_blocks(give)
    }

    fn system_files(
        &self,
        give: &mut dyn FnMut(FileRange),
        left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused> {
        self.gate_files()?;
        self.swap_files(give, left_out)
    }

    fn excluded_files(
        &self,
        masks: &dyn FileMasks,
        give: &mut dyn FnMut(FileRange),
        left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused> {
        self.gate_files()?;
        self.excluded(masks, give, left_out)
    }

    fn in_use(&self, seed: u64, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        self.metadata(give)?;
        self.samples(seed, give)
    }
}
