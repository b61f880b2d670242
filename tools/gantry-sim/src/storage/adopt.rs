//! Disks that others made: flat VMDKs that a restore put into a datastore's folder.
//!
//! In: a descriptor's datastore path; bytes of a file on their way into a datastore. Out: a disk like
//! any other; a file. Invariant: a file that a running VM, a snapshot or a proxy needs is never
//! written to. A host runs flat disks only, so sparse and stream-optimised images are refused.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use gantry_vmdk::{Image, OpenOptions};

use super::Shared;
use super::chain::Extent;
use super::disk::disk_uuid;
use super::error::{IoContext, Result, StorageError, missing};
use super::flat::FlatExtent;
use super::path::DatastorePath;
use super::state::{DiskId, DiskState, LinkId, LinkKind, LinkState};
use super::tracking::TrackingState;
use super::world::World;

/// Longest descriptor that is read for its settings, bytes.
const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;

impl World {
    /// Takes an image that lies in a datastore as a disk; its descriptor is written anew.
    pub(super) fn adopt_disk(&mut self, file: &DatastorePath) -> Result<DiskId> {
        let place = file.under(&self.root);
        if !place.is_file() {
            return Err(missing("file", file));
        }
        let refuse = |why: &dyn std::fmt::Display| {
            StorageError::Invalid(format!("{file} cannot be a running machine's disk: {why}"))
        };
        let root = Some(self.root.join(file.datastore()));
        let options = OpenOptions { root, ..OpenOptions::default() };
        let image = Image::open(&place, &options).map_err(|error| refuse(&error))?;
        let (id, live) = (DiskId(self.state.new_id()), LinkId(self.state.new_id()));
        let link = LinkState {
            disk: id,
            file: file.clone(),
            kind: LinkKind::Flat,
            parent: None,
            cid: image.content_id().unwrap_or(1).clamp(1, 0xffff_fffd),
            tracked: false,
        };
        let extent_place = link.extent_file().under(&self.root);
        let extents = image.flat_extents().unwrap_or_default();
        let whole = extents.len() == 1
            && extents[0].file_offset == 0
            && extents[0].path.canonicalize().ok() == extent_place.canonicalize().ok();
        if !whole {
            let wanted = link.extent_file();
            return Err(refuse(&format!(
                "it is not one flat extent called {}",
                wanted.file_name()
            )));
        }
        let uuid = image.uuid().map(str::to_owned);
        let uuid = match uuid {
            Some(uuid) => uuid,
            None => disk_uuid(self.random(), self.random()),
        };
        let size = std::fs::metadata(&place).at("read", &place)?.len();
        let text = if size <= DESCRIPTOR_BYTES_MAX {
            std::fs::read_to_string(&place).unwrap_or_default()
        } else {
            String::new()
        };
        let disk = DiskState {
            file: file.clone(),
            uuid,
            capacity_bytes: image.size_bytes(),
            thin: text.contains("ddb.thinProvisioned = \"1\""),
            live,
            powered_on: false,
            current: None,
            tracking: TrackingState::default(),
            watched: false,
        };
        let extent = FlatExtent::open(&extent_place)?;
        self.state.disks.insert(id, disk);
        self.state.links.insert(live, link);
        self.extents.insert(live, Extent::Flat(extent));
        self.write_descriptor(live)?;
        self.save()?;
        Ok(id)
    }

    /// Refuses files that must not be written to; the length that a disk's own file must keep.
    fn check_writable(&self, file: &DatastorePath) -> Result<Option<u64>> {
        self.check_unheld(file)?;
        let Some(id) = self.state.link_of_file(file) else { return Ok(None) };
        self.check_unattached(id)?;
        let link = self.state.link(id)?;
        if self.state.is_frozen(id) || link.parent.is_some() || link.file == *file {
            let holder = "it belongs to a disk with snapshots, or describes a disk";
            return Err(StorageError::Locked { file: file.to_string(), holder: holder.into() });
        }
        Ok(Some(self.state.disk(link.disk)?.capacity_bytes))
    }
}

/// A file on its way into a datastore.
#[derive(Debug)]
pub struct Upload {
    file: File,
    path: DatastorePath,
    length: Option<u64>,
    at: u64,
}

impl Upload {
    pub(super) fn open(shared: &Shared, path: &DatastorePath) -> Result<Upload> {
        let (length, place) = {
            let world = shared.lock();
            (world.check_writable(path)?, path.under(&world.root))
        };
        if place.is_dir() {
            return Err(StorageError::Invalid(format!("{path} is a folder")));
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(length.is_none());
        let file = match options.open(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(missing("folder of", path));
            }
            other => other.at("open", &place)?,
        };
        Ok(Upload { file, path: path.clone(), length, at: 0 })
    }

    /// Where it goes.
    pub fn path(&self) -> &DatastorePath {
        &self.path
    }

    /// Adds bytes. Zeros stay holes in a new file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.at + bytes.len() as u64;
        if self.length.is_some_and(|length| end > length) {
            return Err(StorageError::Invalid(format!("{} is longer than its disk", self.path)));
        }
        if self.length.is_some() || bytes.iter().any(|byte| *byte != 0) {
            let place = std::path::Path::new(self.path.file());
            self.file.write_all_at(bytes, self.at).at("write", place)?;
        }
        self.at = end;
        Ok(())
    }

    /// All has come. A disk's own file must have come whole.
    pub fn finish(self) -> Result<()> {
        let place = std::path::Path::new(self.path.file());
        match self.length {
            None => self.file.set_len(self.at).at("size", place),
            Some(length) if length == self.at => Ok(()),
            Some(length) => Err(StorageError::Invalid(format!(
                "{} of {length} bytes came, {} has {}",
                self.at, self.path, length
            ))),
        }
    }
}
