//! From a disk to the volumes on it, and from a volume to the reader of its file system.
//!
//! In: a [`Disk`]. Out: partitions and logical volumes, each with its place on the disk, what it holds,
//! and why it is left alone if it is. Invariant: at most [`limits::VOLUMES_MAX`]. Must not: decide what
//! is filtered; this is also the one place where a file system's reader is plugged in
//! ([`open_file_system`]).

use crate::disk::{Disk, View};
use crate::ext4::Ext4;
use crate::limits;
use crate::lvm;
use crate::partitions::{Partition, Table, read_table};
use crate::signatures::{VolumeKind, detect};
use crate::volume::{Extent, GuestFs, Refused, SnapshotKind};

/// A partition, a logical volume, or a disk without partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// `partition 2`, `logical volume vg/root`, `whole disk`.
    pub place: String,
    /// What it holds; [`VolumeKind::Unknown`] also where nobody looked.
    pub kind: VolumeKind,
    /// Ranges of the disk in the order of the volume; none if they are not known.
    pub pieces: Vec<Extent>,
    /// Why its content is not looked into.
    pub opaque: Option<Refused>,
}

impl Volume {
    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.length))
    }
}

/// A disk's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volumes {
    /// `gpt`, `mbr`, `none`.
    pub table: &'static str,
    /// In the order of the disk; logical volumes after partitions.
    pub volumes: Vec<Volume>,
    /// Why the disk's volumes are not known, or not all.
    pub refused: Option<Refused>,
}

/// Finds a disk's volumes.
pub fn find_volumes(disk: &dyn Disk) -> Volumes {
    let (table, partitions) = match read_table(disk) {
        Ok(Table::None) => ("none", Vec::new()),
        Ok(Table::Mbr(partitions)) => ("mbr", partitions),
        Ok(Table::Gpt(partitions)) => ("gpt", partitions),
        Err(refused) => {
            return Volumes { table: "none", volumes: Vec::new(), refused: Some(refused) };
        }
    };
    let mut volumes = Volumes { table, volumes: Vec::new(), refused: None };
    if table == "none" {
        let whole = Extent { start: 0, length: disk.length() };
        volumes.volumes.push(look(disk, "whole disk".to_owned(), whole));
    } else {
        volumes.refused = doubt(disk);
        if volumes.refused.is_none() {
            let taken = partitions.iter().take(limits::VOLUMES_MAX);
            volumes.volumes.extend(taken.map(|partition| of_partition(disk, partition)));
            if partitions.len() > limits::VOLUMES_MAX {
                volumes.refused =
                    Some(Refused::new("it has too many partitions; the rest is copied"));
            }
        }
    }
    add_logical(disk, &mut volumes);
    volumes
}

/// A file system over the whole disk beside a partition table: one of them is stale.
fn doubt(disk: &dyn Disk) -> Option<Refused> {
    match detect(disk) {
        Ok(VolumeKind::Unknown) => None,
        Ok(kind) => {
            let text = format!("it has a partition table, and is {} as a whole", kind.name());
            Some(Refused::new(text))
        }
        Err(refused) => Some(refused),
    }
}

fn of_partition(disk: &dyn Disk, partition: &Partition) -> Volume {
    let place = format!("partition {}", partition.number);
    match partition.opaque {
        Some(why) => {
            let pieces = vec![partition.range];
            let opaque = Some(Refused::new(why));
            Volume { place, kind: VolumeKind::Unknown, pieces, opaque }
        }
        None => look(disk, place, partition.range),
    }
}

fn look(disk: &dyn Disk, place: String, range: Extent) -> Volume {
    let pieces = vec![range];
    let kind = View::of(disk, pieces.clone())
        .map_err(|_| Refused::new("it is not within the disk"))
        .and_then(|view| detect(&view));
    match kind {
        Ok(kind) => Volume { place, kind, pieces, opaque: why_opaque(kind) },
        Err(refused) => Volume { place, kind: VolumeKind::Unknown, pieces, opaque: Some(refused) },
    }
}

fn why_opaque(kind: VolumeKind) -> Option<Refused> {
    let why = match kind {
        VolumeKind::Ext4 | VolumeKind::Xfs | VolumeKind::Ntfs | VolumeKind::Swap => return None,
        // Its logical volumes say what there is to say.
        VolumeKind::LvmPhysicalVolume => return None,
        VolumeKind::BitLocker | VolumeKind::Luks => "it is encrypted in the guest".to_owned(),
        VolumeKind::Md => "it is a part of a software RAID".to_owned(),
        VolumeKind::Other(name) => format!("there is no filter for {name}"),
        VolumeKind::Unknown => "its content is not known".to_owned(),
    };
    Some(Refused::new(why))
}

/// The logical volumes of the physical volumes among the volumes.
fn add_logical(disk: &dyn Disk, volumes: &mut Volumes) {
    let physical: Vec<Extent> = volumes
        .volumes
        .iter()
        .filter(|volume| volume.kind == VolumeKind::LvmPhysicalVolume)
        .filter_map(|volume| volume.pieces.first().copied())
        .collect();
    let (logical, unread) = lvm::logical_volumes(disk, &physical);
    for (range, refused) in unread {
        let found = volumes.volumes.iter_mut().find(|volume| volume.pieces == [range]);
        if let Some(volume) = found {
            volume.opaque = Some(refused);
        }
    }
    for volume in logical {
        if volumes.volumes.len() >= limits::VOLUMES_MAX {
            volumes.refused = Some(Refused::new("it has too many volumes; the rest is copied"));
            return;
        }
        volumes.volumes.push(of_logical(disk, volume));
    }
    let shared = overlapping(&volumes.volumes);
    for volume in &mut volumes.volumes {
        if shared && volume.kind != VolumeKind::LvmPhysicalVolume {
            volume.opaque = Some(Refused::new("logical volumes of this disk overlap"));
        }
    }
}

fn of_logical(disk: &dyn Disk, volume: lvm::LogicalVolume) -> Volume {
    let place = format!("logical volume {}", volume.name);
    let opaque = |refused, pieces| Volume {
        place: place.clone(),
        kind: VolumeKind::Unknown,
        pieces,
        opaque: Some(refused),
    };
    let pieces = match volume.pieces {
        Ok(pieces) => pieces,
        Err(refused) => return opaque(refused, Vec::new()),
    };
    let kind = View::of(disk, pieces.clone()).map_err(Refused::from).and_then(|view| detect(&view));
    match kind {
        // A physical volume in a logical one is not followed.
        Ok(kind @ VolumeKind::LvmPhysicalVolume) => {
            let refused = Refused::new("it is a physical volume within a logical one");
            Volume { place, kind, pieces, opaque: Some(refused) }
        }
        Ok(kind) => Volume { place, kind, pieces, opaque: why_opaque(kind) },
        Err(refused) => opaque(refused, pieces),
    }
}

/// Whether two logical volumes share bytes of the disk, which only damaged metadata says.
fn overlapping(volumes: &[Volume]) -> bool {
    let logical = volumes.iter().filter(|volume| volume.place.starts_with("logical"));
    let mut pieces: Vec<Extent> = logical.flat_map(|volume| volume.pieces.clone()).collect();
    pieces.sort_unstable();
    pieces.windows(2).any(|pair| pair[0].start + pair[0].length > pair[1].start)
}

/// Opens the file system that a volume holds. `snapshot` says what the hypervisor knows of the moment.
///
/// # Errors
/// It has none that is known, or is damaged, or has a feature that is not understood.
pub fn open_file_system<'a>(
    kind: VolumeKind,
    volume: &'a dyn Disk,
    snapshot: SnapshotKind,
) -> Result<Box<dyn GuestFs + 'a>, Refused> {
    // ext4 and XFS show by themselves whether they were frozen; the hypervisor's word adds nothing.
    let _ = snapshot;
    match kind {
        VolumeKind::Ext4 => Ok(Box::new(Ext4::open(volume)?)),
        VolumeKind::Xfs => crate::xfs::open(volume),
        kind => Err(Refused::new(format!("there is no filter for {}", kind.name()))),
    }
}
