//! Files of XFS that are looked for: by mask, as swap files, as samples of what is in use.
//!
//! In: a file system whose metadata is true. Out: ranges of files, or why a file is left out.
//! Invariant: a file whose blocks another file may share, or that has a name which no mask excludes, is
//! never given. Must not: trust an entry's kind; the inode says what it is.

use std::collections::{BTreeMap, HashSet};

use crate::limits;
use crate::swap;
use crate::volume::{Extent, FileMasks, FileRange, Reason, Refused};
use crate::xfs::directory::EntryKind;
use crate::xfs::group::{Chunk, Reader};
use crate::xfs::inode::{Inode, Mapping};

/// Folders where installers and administrators put swap files; only files in them are looked at.
const SWAP_FOLDERS: [&str; 5] = ["", "/swap", "/var", "/var/swap", "/mnt"];

/// Gives the content of every file that the masks exclude by all of its names.
pub(super) fn excluded(
    reader: &Reader<'_>,
    masks: &dyn FileMasks,
    give: &mut dyn FnMut(FileRange),
    left_out: &mut dyn FnMut(&str, Refused),
) -> Result<(), Refused> {
    // Of files with several names: how many of them are excluded.
    let mut linked: BTreeMap<u64, (u32, String)> = BTreeMap::new();
    let enter = |folder: &str| masks.may_exclude_beneath(folder);
    walk(reader, &enter, &mut |path, number| {
        if !masks.excludes(path) {
            return Ok(());
        }
        let inode = reader.inode(number)?;
        if let Some(entry) = linked.get_mut(&number) {
            entry.0 += 1;
        } else if inode.links > 1 {
            if linked.len() >= limits::LINKED_FILES_MAX {
                return Err(Refused::new("too many excluded files have several names"));
            }
            linked.insert(number, (1, path.to_owned()));
        } else {
            content(reader, &inode, path, give, left_out)?;
        }
        Ok(())
    })?;
    for (number, (names, path)) in linked {
        let inode = reader.inode(number)?;
        if inode.links == names {
            content(reader, &inode, &path, give, left_out)?;
        } else {
            left_out(&path, Refused::new("it has a name that is not excluded (hard link)"));
        }
    }
    Ok(())
}

/// Gives one file's content as excluded.
fn content(
    reader: &Reader<'_>,
    inode: &Inode,
    path: &str,
    give: &mut dyn FnMut(FileRange),
    left_out: &mut dyn FnMut(&str, Refused),
) -> Result<(), Refused> {
    match own_mappings(reader, inode)? {
        Ok(mappings) => {
            for Mapping { extent, .. } in mappings {
                let path = path.to_owned();
                give(FileRange { range: extent, reason: Reason::Excluded, path });
            }
        }
        Err(why) => left_out(path, why),
    }
    Ok(())
}

/// A file's mappings if they are nobody else's. The outer error is damage.
fn own_mappings(
    reader: &Reader<'_>,
    inode: &Inode,
) -> Result<Result<Vec<Mapping>, Refused>, Refused> {
    let why = if !inode.is_file() {
        "it is no ordinary file"
    } else if inode.is_shared() {
        "it may share blocks with other files (reflink)"
    } else if inode.is_realtime() {
        "it is in the realtime part"
    } else {
        return reader.mappings(inode, &mut |_| {}).map(Ok);
    };
    Ok(Err(Refused::new(why)))
}

/// Gives the swap files, without their headers.
pub(super) fn swap_files(
    reader: &Reader<'_>,
    give: &mut dyn FnMut(FileRange),
    left_out: &mut dyn FnMut(&str, Refused),
) -> Result<(), Refused> {
    let enter = |folder: &str| {
        SWAP_FOLDERS
            .iter()
            .any(|wanted| *wanted == folder || wanted.starts_with(&format!("{folder}/")))
    };
    walk(reader, &enter, &mut |path, number| {
        let inode = reader.inode(number)?;
        if !inode.is_file() || inode.size < 2 * swap::HEAD_BYTES as u64 {
            return Ok(());
        }
        let Some(head) = beginning(reader, &inode)? else { return Ok(()) };
        if !swap::has_signature(&head) {
            return Ok(());
        }
        let header = match swap::read_header(&head) {
            Ok(header) if header.length > inode.size => {
                Err(Refused::new("it is shorter than it says"))
            }
            Ok(_) if inode.links != 1 => Err(Refused::new("it has several names (hard links)")),
            other => other,
        };
        let mappings = match header {
            Ok(header) => own_mappings(reader, &inode)?.map(|mappings| (header, mappings)),
            Err(why) => Err(why),
        };
        match mappings {
            Ok((header, mappings)) => {
                for mapping in mappings {
                    give_pages(reader, &mapping, &header, path, give);
                }
            }
            Err(why) => left_out(path, why),
        }
        Ok(())
    })
}

/// The part of a swap file's mapping that is between its header and its end.
fn give_pages(
    reader: &Reader<'_>,
    mapping: &Mapping,
    header: &swap::SwapHeader,
    path: &str,
    give: &mut dyn FnMut(FileRange),
) {
    let begin = mapping.offset.saturating_mul(reader.geometry.block_bytes);
    let end = begin.saturating_add(mapping.extent.length).min(header.length);
    let from = begin.max(swap::HEAD_BYTES as u64);
    if from < end {
        let range = Extent { start: mapping.extent.start + (from - begin), length: end - from };
        give(FileRange { range, reason: Reason::Swap, path: path.to_owned() });
    }
}

/// A file's first bytes; nothing if they are not all on disk.
fn beginning(reader: &Reader<'_>, inode: &Inode) -> Result<Option<Vec<u8>>, Refused> {
    let Ok(mappings) = reader.mappings(inode, &mut |_| {}) else { return Ok(None) };
    let mut head = vec![0; swap::HEAD_BYTES];
    let mut filled = 0;
    for mapping in mappings {
        if filled == head.len() {
            break;
        }
        if mapping.offset.saturating_mul(reader.geometry.block_bytes) != filled as u64 {
            return Ok(None);
        }
        let now = mapping.extent.length.min((head.len() - filled) as u64) as usize;
        reader.disk.read_at(mapping.extent.start, &mut head[filled..filled + now])?;
        filled += now;
    }
    Ok((filled == head.len()).then_some(head))
}

/// Walks the folders that `enter` wants, the root as the empty path; each file's path and inode number.
fn walk(
    reader: &Reader<'_>,
    enter: &dyn Fn(&str) -> bool,
    file: &mut dyn FnMut(&str, u64) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let mut seen = HashSet::new();
    let mut waiting = vec![(String::new(), reader.geometry.root_inode)];
    while let Some((folder, number)) = waiting.pop() {
        if !seen.insert(number) {
            return Err(Refused::new("a folder of this XFS stands in two places"));
        }
        let inode = reader.inode(number)?;
        if !inode.is_folder() {
            return Err(Refused::new(format!("{folder}/ of this XFS is no folder")));
        }
        reader.entries(&inode, &mut |name, number, kind| {
            if folder.len() + name.len() >= limits::PATH_BYTES_MAX {
                return Ok(());
            }
            let path = format!("{folder}/{name}");
            match kind {
                EntryKind::File => file(&path, number),
                EntryKind::Folder if enter(&path) => {
                    if seen.len() + waiting.len() >= limits::FOLDERS_MAX {
                        return Err(Refused::new("it has too many folders to look for files"));
                    }
                    waiting.push((path, number));
                    Ok(())
                }
                EntryKind::Folder | EntryKind::Other => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// Gives metadata and the content of some files.
pub(super) fn in_use(
    reader: &Reader<'_>,
    seed: u64,
    give: &mut dyn FnMut(Extent),
) -> Result<(), Refused> {
    give(reader.geometry.log);
    let chunks_max = limits::SAMPLED_FILES_MAX / 16;
    let (mut samples, mut count) = (Vec::new(), 0u64);
    for group in 0..reader.geometry.groups {
        reader.group_metadata(group, give)?;
        let mut blocks = Vec::new();
        let mut sample = |chunk: Chunk| {
            count += 1;
            // Each chunk has the same chance to stay, however many there are.
            let at = usize::try_from(mixed(seed ^ count) % count).unwrap_or(usize::MAX);
            if samples.len() < chunks_max {
                samples.push(chunk);
            } else if let Some(slot) = samples.get_mut(at) {
                *slot = chunk;
            }
        };
        reader.chunks(group, &mut |block| blocks.push(block), &mut sample)?;
        blocks.into_iter().for_each(&mut *give);
    }
    let per_chunk = limits::SAMPLED_FILES_MAX / chunks_max;
    for chunk in samples {
        let used: Vec<u64> = chunk.used(&reader.geometry).collect();
        let skip = mixed(seed ^ u64::from(chunk.group)) % (used.len() as u64).max(1);
        for &number in used.iter().cycle().skip(skip as usize).take(used.len().min(per_chunk)) {
            let inode = reader.inode(number)?;
            give(inode.place);
            if inode.is_file() || inode.is_folder() {
                let mappings = reader.mappings(&inode, give)?;
                let mappings = mappings.iter().take(limits::SAMPLED_RANGES_MAX);
                mappings.for_each(|mapping| give(mapping.extent));
            }
        }
    }
    Ok(())
}

/// Spreads a number over all bits (splitmix64).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
