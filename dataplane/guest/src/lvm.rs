//! LVM2: physical volumes and the metadata text in, linear logical volumes out.
//!
//! In: the physical volumes of one disk ([`PhysicalVolume`], each a range of it). Out: every logical
//! volume of their groups, with its pieces on the disk or why it is opaque. Invariant: a volume is
//! mapped only if every physical volume of its group is on this disk, all copies of the metadata agree,
//! and it is visible, linear (`striped` with one stripe) and no part of another. Must not: build
//! mirrors, stripes, thin volumes or snapshots. Reader of our own: the crate `lamlvm` knows one
//! segment on one physical volume. Source: lvm2 `lib/format_text/layout.h`, `man lvmsystemid`,
//! `vgcfgbackup` of Debian 12.

mod label;
mod text;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::disk::{Disk, View};
use crate::limits;
use crate::volume::{Extent, Refused};
use text::Section;

pub use label::{PhysicalVolume, has_label};

const SECTOR_BYTES: u64 = 512;
/// What a group or volume may be without a doubt about where its bytes are.
const GROUP_STATUS: [&str; 3] = ["RESIZEABLE", "READ", "WRITE"];
const VOLUME_STATUS: [&str; 4] = ["READ", "WRITE", "VISIBLE", "FIXED_MINOR"];

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// `group/volume`.
    pub name: String,
    /// Ranges of the disk in the order of the volume, or why it cannot be looked into.
    pub pieces: Result<Vec<Extent>, Refused>,
}

/// A group that its physical volumes name, and those of them that are here.
struct Group {
    sequence: u64,
    text: Section,
    /// Their UUIDs and where each is on the disk.
    present: HashMap<String, Extent>,
    doubt: Option<Refused>,
}

/// The logical volumes of these physical volumes.
///
/// # Errors
/// For each physical volume whose metadata cannot be read: its range and why.
pub fn logical_volumes(
    disk: &dyn Disk,
    physical: &[Extent],
) -> (Vec<LogicalVolume>, Vec<(Extent, Refused)>) {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let (mut unread, mut bare) = (Vec::new(), Vec::new());
    for &range in physical {
        match of_physical(disk, range) {
            Ok((volume, Some((name, text)))) => add(&mut groups, name, text, &volume.uuid, range),
            Ok((volume, None)) => bare.push((volume.uuid, range)),
            Err(refused) => unread.push((range, refused)),
        }
    }
    // Physical volumes may have no copy of the metadata; the others' name them.
    for (uuid, range) in bare {
        match groups.values_mut().find(|group| names(&group.text, &uuid)) {
            Some(group) => {
                group.present.insert(uuid, range);
            }
            None => unread.push((range, Refused::new("it has no metadata and no group names it"))),
        }
    }
    let volumes = groups.iter().flat_map(|(name, group)| volumes_of(name, group)).collect();
    (volumes, unread)
}

type Named = Option<(String, Section)>;

fn of_physical(disk: &dyn Disk, range: Extent) -> Result<(PhysicalVolume, Named), Refused> {
    let view = View::of(disk, vec![range])?;
    let volume = PhysicalVolume::read(&view)?;
    let Some(bytes) = volume.metadata(&view)? else { return Ok((volume, None)) };
    let mut whole = text::parse(&bytes)?;
    let (name, group) = whole.take_only_section()?;
    Ok((volume, Some((name, group))))
}

fn add(
    groups: &mut BTreeMap<String, Group>,
    name: String,
    text: Section,
    uuid: &str,
    range: Extent,
) {
    let sequence = text.number("seqno").unwrap_or(0);
    let group = groups.entry(name).or_insert_with(|| Group {
        sequence,
        text: Section::default(),
        present: HashMap::new(),
        doubt: None,
    });
    if !group.present.is_empty() && (group.sequence != sequence || group.text != text) {
        let why = "its physical volumes hold different versions of the metadata";
        group.doubt = Some(Refused::new(why));
    }
    if group.present.insert(uuid.to_owned(), range).is_some() {
        group.doubt = Some(Refused::new("two of its physical volumes have the same UUID"));
    }
    group.text = text;
}

fn names(group: &Section, uuid: &str) -> bool {
    let volumes = group.section("physical_volumes").into_iter().flat_map(Section::sections);
    volumes.filter_map(|(_, volume)| volume.string("id")).any(|id| plain(id) == uuid)
}

/// A UUID without its dashes, as the label has it.
fn plain(uuid: &str) -> String {
    uuid.chars().filter(|c| *c != '-').collect()
}

fn volumes_of(group_name: &str, group: &Group) -> Vec<LogicalVolume> {
    let whole = match &group.doubt {
        Some(doubt) => Err(doubt.clone()),
        None => Layout::of(group),
    };
    let all = group.text.section("logical_volumes").into_iter().flat_map(Section::sections);
    let all: Vec<_> = all.collect();
    let parts = parts_of_others(&all);
    let visible = all.iter().filter(|(_, volume)| volume.strings("status").contains(&"VISIBLE"));
    let visible = visible.take(limits::VOLUMES_MAX);
    let pieces = |name: &str, volume: &Section| match &whole {
        Err(refused) => Err(refused.clone()),
        Ok(_) if parts.contains(name) => {
            Err(Refused::new("it is an origin, a snapshot or a part of another logical volume"))
        }
        Ok(layout) => layout.pieces(volume),
    };
    visible
        .map(|(name, volume)| LogicalVolume {
            name: format!("{group_name}/{name}"),
            pieces: pieces(name, volume),
        })
        .collect()
}

/// Names of volumes that a segment which is not linear mentions in whatever role.
fn parts_of_others<'a>(all: &[(&str, &'a Section)]) -> HashSet<&'a str> {
    let mut parts = HashSet::new();
    for (_, segment) in all.iter().flat_map(|(_, volume)| volume.sections()) {
        if segment.string("type") != Some("striped") {
            parts.extend(segment.all_strings());
        }
    }
    parts
}

/// Where a group's extents are.
struct Layout {
    extent_bytes: u64,
    /// By the name that segments use: where its extents begin on the disk, and how many it has.
    volumes: HashMap<String, (u64, u64)>,
}

impl Layout {
    fn of(group: &Group) -> Result<Layout, Refused> {
        let text = &group.text;
        let odd = text.strings("status").into_iter().find(|word| !GROUP_STATUS.contains(word));
        if let Some(word) = odd {
            return Err(Refused::new(format!("its volume group is {word}")));
        }
        let sectors = text.number("extent_size").filter(|sectors| *sectors > 0);
        let extent_bytes = sectors.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
        let extent_bytes = extent_bytes.ok_or_else(|| Refused::new("its extents have no size"))?;
        let mut volumes = HashMap::new();
        let named = text.section("physical_volumes").into_iter().flat_map(Section::sections);
        for (name, volume) in named {
            let uuid = volume.string("id").map(plain).unwrap_or_default();
            if volume.strings("flags").contains(&"MISSING") {
                return Err(Refused::new("a physical volume of its group is missing"));
            }
            let range = group.present.get(&uuid).ok_or_else(|| {
                Refused::new("a physical volume of its group is not on this disk")
            })?;
            let start = volume.number("pe_start").and_then(|start| start.checked_mul(SECTOR_BYTES));
            let count = volume.number("pe_count");
            let room = start.zip(count).and_then(|(start, count)| {
                let end = count.checked_mul(extent_bytes)?.checked_add(start)?;
                (end <= range.length).then_some((range.start + start, count))
            });
            let room = room.ok_or_else(|| {
                Refused::new("a physical volume is smaller than its metadata says")
            })?;
            volumes.insert(name.to_owned(), room);
        }
        Ok(Layout { extent_bytes, volumes })
    }

    fn pieces(&self, volume: &Section) -> Result<Vec<Extent>, Refused> {
        let odd = volume.strings("status").into_iter().find(|word| !VOLUME_STATUS.contains(word));
        if let Some(word) = odd {
            return Err(Refused::new(format!("it is {word}")));
        }
        let count = volume.number("segment_count").unwrap_or(0);
        if count as usize != volume.sections().count() || count as usize > limits::PIECES_MAX {
            return Err(Refused::new("its segments are not those that its metadata counts"));
        }
        let mut segments = volume.sections().map(|(_, segment)| segment).collect::<Vec<_>>();
        segments.sort_by_key(|segment| segment.number("start_extent"));
        let (mut pieces, mut expected) = (Vec::with_capacity(segments.len()), 0);
        for segment in segments {
            let (piece, extents) = self.piece(segment)?;
            if segment.number("start_extent") != Some(expected) {
                return Err(Refused::new("its segments leave gaps"));
            }
            expected += extents;
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn piece(&self, segment: &Section) -> Result<(Extent, u64), Refused> {
        let kind = segment.string("type").unwrap_or("of no type");
        let stripes = segment.number("stripe_count");
        if kind != "striped" || stripes != Some(1) {
            let stripes = stripes.filter(|count| *count > 1);
            let stripes = stripes.map(|count| format!(" over {count} volumes")).unwrap_or_default();
            return Err(Refused::new(format!("it is not linear but {kind}{stripes}")));
        }
        let wrong = || Refused::new("a segment of it leads nowhere");
        let (name, first) = segment.stripe().ok_or_else(wrong)?;
        let (start, room) = *self.volumes.get(name).ok_or_else(wrong)?;
        let extents =
            segment.number("extent_count").filter(|count| *count > 0).ok_or_else(wrong)?;
        if first.checked_add(extents).is_none_or(|end| end > room) {
            return Err(wrong());
        }
        // Within the physical volume, whose end was computed without overflow.
        let piece = Extent {
            start: start + first * self.extent_bytes,
            length: extents * self.extent_bytes,
        };
        Ok((piece, extents))
    }
}
