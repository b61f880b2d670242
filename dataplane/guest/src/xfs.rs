//! XFS of version 5: free space and files of an unmounted or frozen file system.
//!
//! In: a volume. Out: [`GuestFs`]. What is on disk is believed only where the journal says that nothing
//! is missing from it ([`log`]): after an unmount, or after a freeze, which is what VMware Tools does
//! for a quiesced snapshot; the hypervisor's word alone is not taken, because the journal shows it.
//! Invariant: a structure that is used has its checksum, its place and its owner. Must not: replay.

use crate::disk::Disk;
use crate::volume::{Consistency, Extent, FileMasks, FileRange, GuestFs, Refused};
use crate::xfs::group::Reader;
use crate::xfs::log::LogState;
use crate::xfs::superblock::Geometry;

mod superblock;
mod log;
mod group;
mod inode;
mod directory;
mod files;

/// Opens an XFS.
///
/// # Errors
/// It is none, is of version 4, is damaged, or has a feature that is not known or not supported.
pub fn open<'a>(volume: &'a dyn Disk) -> Result<Box<dyn GuestFs + 'a>, Refused> {
    let geometry = Geometry::read(volume)?;
    let log = log::state(volume, &geometry);
    Ok(Box::new(Xfs { reader: Reader { disk: volume, geometry }, log }))
}

struct Xfs<'a> {
    reader: Reader<'a>,
    log: LogState,
}

impl Xfs<'_> {
    /// Passes only where all metadata on disk is what is true.
    fn gate(&self) -> Result<(), Refused> {
        match &self.log {
            LogState::Clean | LogState::OnlySuperblock => Ok(()),
            LogState::Dirty(why) => Err(Refused::new(why)),
        }
    }
}

impl GuestFs for Xfs<'_> {
    fn kind(&self) -> &'static str {
        "xfs"
    }

    fn identity(&self) -> String {
        self.reader.geometry.identity.clone()
    }

    fn consistency(&self) -> Consistency {
        match &self.log {
            LogState::Clean | LogState::OnlySuperblock => Consistency::Clean,
            LogState::Dirty(why) => Consistency::Unsafe(why.clone()),
        }
    }

    fn free(&self, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        self.gate()?;
        (0..self.reader.geometry.groups)
            .try_for_each(|group| self.reader.free_in_group(group, give))
    }

    fn system_files(
        &self,
        give: &mut dyn FnMut(FileRange),
        left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused> {
        self.gate()?;
        files::swap_files(&self.reader, give, left_out)
    }

    fn excluded_files(
        &self,
        masks: &dyn FileMasks,
        give: &mut dyn FnMut(FileRange),
        left_out: &mut dyn FnMut(&str, Refused),
    ) -> Result<(), Refused> {
        self.gate()?;
        files::excluded(&self.reader, masks, give, left_out)
    }

    fn in_use(&self, seed: u64, give: &mut dyn FnMut(Extent)) -> Result<(), Refused> {
        files::in_use(&self.reader, seed, give)
    }
}
