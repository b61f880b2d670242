//! Files of ext4 that may be dropped: swap files, and what the administrator excludes.
//!
//! In: an ext4 that needs no replay. Out: ranges of their content. Invariant: a file with another name
//! that is not excluded stays; so does what is not plain content (inline, encrypted, fs-verity). Must
//! not: trust a name alone for a swap file; its header decides.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::folder::{Entry, Names};
use super::inode::Inode;
use super::{Ext4, ROOT_INODE};
use crate::limits;
use crate::swap;
use crate::volume::{Extent, FileMasks, FileRange, Reason, Refused};

/// Where swap files stand by custom, beside what fstab names and the root folder.
const SWAP_FOLDERS: [&str; 4] = ["/", "/swap", "/var", "/var/swap"];
/// Names that are looked at in folders other than those for swap alone.
const SWAP_NAMES: [&str; 2] = ["swap", "page"];
/// Smaller files are not worth a look.
const SWAP_BYTES_MIN: u64 = 1 << 20;
/// Files whose header is read.
const SWAP_CANDIDATES_MAX: usize = 64;
/// Bytes of fstab that are read.
const FSTAB_BYTES_MAX: u64 = 64 << 10;

type Give<'a> = &'a mut dyn FnMut(FileRange);
type LeftOut<'a> = &'a mut dyn FnMut(&str, Refused);

impl Ext4<'_> {
    /// An inode by its path; nothing if there is none.
    fn lookup(&self, path: &str) -> Result<Option<Inode>, Refused> {
        let mut inode = self.inode(ROOT_INODE)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if !inode.is_folder() {
                return Ok(None);
            }
            let mut found = None;
            self.entries(&inode, &mut |entry| {
                if entry.name == name {
                    found = Some(entry.inode);
                }
                Ok(())
            })?;
            match found {
                Some(number) => inode = self.inode(number)?,
                None => return Ok(None),
            }
        }
        Ok(Some(inode))
    }

    /// The first bytes of a file; holes are zeros.
    fn head(&self, inode: &Inode, most: u64) -> Result<Vec<u8>, Refused> {
        let mut bytes = vec![0; inode.size.min(most) as usize];
        let block_bytes = self.image.superblock.block_bytes;
        for run in inode.all_runs(&self.image)? {
            for number in 0..run.count {
                let from = (run.logical + number) * block_bytes;
                if from >= bytes.len() as u64 {
                    break;
                }
                let block = self.image.block(run.block + number)?;
                let to = &mut bytes[from as usize..];
                let length = to.len().min(block.len());
                to[..length].copy_from_slice(&block[..length]);
            }
        }
        Ok(bytes)
    }

    /// Swap files; see [`crate::GuestFs::system_files`].
    pub(super) fn swap_files(&self, give: Give, left_out: LeftOut) -> Result<(), Refused> {
        let mut candidates = BTreeSet::new();
        for folder in SWAP_FOLDERS {
            let Some(inode) = self.lookup(folder)? else { continue };
            if !inode.is_folder() || inode.is_encrypted() {
                continue;
            }
            let all = folder != "/var";
            self.entries(&inode, &mut |entry| {
                let fits = all || SWAP_NAMES.iter().any(|name| entry.name.contains(name));
                let file = matches!(entry.names, Names::File | Names::Unsaid);
                if file && fits && candidates.len() < SWAP_CANDIDATES_MAX {
                    candidates.insert(join(folder, &entry.name));
                }
                Ok(())
            })?;
        }
        candidates.extend(self.fstab_swap()?);
        for path in candidates {
            let Some(inode) = self.lookup(&path)? else { continue };
            if !inode.is_file() || inode.size < SWAP_BYTES_MIN || inode.untouchable().is_some() {
                continue;
            }
            let head = self.head(&inode, swap::HEAD_BYTES as u64)?;
            if swap::has_signature(&head) {
                match self.swap_file(&inode, &head, &path) {
                    Ok(ranges) => {
                        self.given.borrow_mut().insert(inode.number);
                        ranges.into_iter().for_each(&mut *give);
                    }
                    Err(refused) => left_out(&path, refused),
                }
            }
        }
        Ok(())
    }

    fn swap_file(&self, inode: &Inode, head: &[u8], path: &str) -> Result<Vec<FileRange>, Refused> {
        if inode.links != 1 {
            return Err(Refused::new("it has several names"));
        }
        let header = swap::read_header(head)?;
        if header.length > inode.size {
            return Err(Refused::new("its swap header is for a larger file"));
        }
        let within = Extent { start: header.page_bytes, length: header.length - header.page_bytes };
        self.content(inode, within, Reason::Swap, path)
    }

    /// Paths of swap files in fstab.
    fn fstab_swap(&self) -> Result<Vec<String>, Refused> {
        let Some(inode) = self.lookup("/etc/fstab")? else { return Ok(Vec::new()) };
        if !inode.is_file() || inode.untouchable().is_some() {
            return Ok(Vec::new());
        }
        let bytes = self.head(&inode, FSTAB_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (path, _, kind) = (words.next()?, words.next()?, words.next()?);
            let file = kind == "swap" && path.starts_with('/') && !path.starts_with("/dev/");
            file.then(|| path.to_owned())
        });
        Ok(lines.take(SWAP_CANDIDATES_MAX).collect())
    }

    /// A file's content within a range of the file.
    fn content(
        &self,
        inode: &Inode,
        within: Extent,
        reason: Reason,
        path: &str,
    ) -> Result<Vec<FileRange>, Refused> {
        let block_bytes = self.image.superblock.block_bytes;
        let end = within.start.saturating_add(within.length);
        let mut ranges = Vec::new();
        for run in inode.all_runs(&self.image)? {
            let whole = self.image.bytes(run.block, run.count)?;
            let begin = run.logical * block_bytes;
            let (from, to) = (begin.max(within.start), (begin + whole.length).min(end));
            if from < to {
                let range = Extent { start: whole.start + (from - begin), length: to - from };
                ranges.push(FileRange { range, reason, path: path.to_owned() });
            }
        }
        Ok(ranges)
    }

    /// Excluded files; see [`crate::GuestFs::excluded_files`].
    pub(super) fn excluded(
        &self,
        masks: &dyn FileMasks,
        give: Give,
        left_out: LeftOut,
    ) -> Result<(), Refused> {
        let mut walk = Walk { pending: Vec::new(), seen: HashSet::new(), linked: HashMap::new() };
        walk.pending.push((ROOT_INODE, String::new()));
        walk.seen.insert(ROOT_INODE);
        while let Some((number, path)) = walk.pending.pop() {
            let folder = self.inode(number)?;
            if !folder.is_folder() {
                return Err(Refused::new(format!("{path} is no folder")));
            }
            if folder.is_encrypted() || !folder.has_blocks() {
                left_out(&path, Refused::new("it is a folder that cannot be read"));
                continue;
            }
            let mut entries = Vec::new();
            self.entries(&folder, &mut |entry| {
                let child = format!("{path}/{}", entry.name);
                let known = entry.names != Names::Unsaid;
                let folder = entry.names == Names::Folder && masks.may_exclude_beneath(&child);
                if !known || folder || entry.names == Names::File && masks.excludes(&child) {
                    entries.push((entry, child));
                }
                Ok(())
            })?;
            for (entry, child) in entries {
                self.visit(&mut walk, masks, entry, child, give, left_out)?;
            }
        }
        for (_, (links, found, path)) in walk.linked {
            let text = format!("only {found} of its {links} names are excluded");
            left_out(&path, Refused::new(text));
        }
        Ok(())
    }

    fn visit(
        &self,
        walk: &mut Walk,
        masks: &dyn FileMasks,
        entry: Entry,
        path: String,
        give: Give,
        left_out: LeftOut,
    ) -> Result<(), Refused> {
        if path.len() > limits::PATH_BYTES_MAX {
            let start: String = path.chars().take(200).collect();
            left_out(&start, Refused::new("its path is too long"));
            return Ok(());
        }
        let unsaid = entry.names == Names::Unsaid;
        let inode = match entry.names {
            Names::Folder => None,
            _ => Some(self.inode(entry.inode)?),
        };
        if entry.names == Names::Folder || inode.as_ref().is_some_and(Inode::is_folder) {
            if unsaid && !masks.may_exclude_beneath(&path) {
                return Ok(());
            }
            if !walk.seen.insert(entry.inode) {
                return Err(Refused::new(format!("the folder {path} has two places")));
            }
            if walk.seen.len() > limits::FOLDERS_MAX {
                return Err(Refused::new("it has too many folders"));
            }
            walk.pending.push((entry.inode, path));
            return Ok(());
        }
        let Some(inode) = inode.filter(Inode::is_file) else { return Ok(()) };
        if unsaid && !masks.excludes(&path) {
            return Ok(());
        }
        if inode.links == 0 || inode.deleted || inode.number < self.image.superblock.first_inode {
            return Err(Refused::new(format!("{path} is a name without a file")));
        }
        if let Some(why) = inode.untouchable() {
            left_out(&path, Refused::new(why));
            return Ok(());
        }
        if inode.links > 1 {
            let known = walk.linked.entry(inode.number);
            let (links, found, _) = known.or_insert_with(|| (inode.links, 0, path.clone()));
            *found += 1;
            if found < links {
                return Ok(());
            }
            walk.linked.remove(&inode.number);
        }
        let all = Extent { start: 0, length: u64::MAX };
        let ranges = self.content(&inode, all, Reason::Excluded, &path)?;
        self.given.borrow_mut().insert(inode.number);
        ranges.into_iter().for_each(give);
        Ok(())
    }
}

struct Walk {
    /// Folders to be read.
    pending: Vec<(u32, String)>,
    /// Folders that were found, so that a ring ends.
    seen: HashSet<u32>,
    /// Files with several names: how many, how many of them were found to be excluded, the first.
    linked: HashMap<u32, (u16, u16, String)>,
}

fn join(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}
