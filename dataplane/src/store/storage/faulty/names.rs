//! The folders of the simulated disk: names now, names on the platter, and the changes between.
//!
//! In: links, renames, removals, syncs of a folder, a crash. Out: names. Invariant: a crash leaves
//! a prefix of a folder's changes since its last sync; what stands in a folder that is lost is lost
//! with it.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::super::Entry;
use super::inode::prefix;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    File(u64),
    Folder,
}

#[derive(Debug, Clone)]
enum Change {
    Link(String, Node),
    Unlink(String),
    Rename(String, String),
}

type Names = BTreeMap<String, Node>;

#[derive(Debug, Clone, Default)]
struct Folder {
    now: Names,
    durable: Names,
    log: Vec<Change>,
    /// Its name was taken away; a crash may bring it back.
    is_removed: bool,
}

/// All folders, by path; the root is the empty path and always there.
#[derive(Debug, Clone)]
pub(super) struct Folders(BTreeMap<String, Folder>);

impl Default for Folders {
    fn default() -> Folders {
        Folders(BTreeMap::from([(String::new(), Folder::default())]))
    }
}

/// A path's folder and its name there.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn apply(names: &mut Names, change: &Change) {
    match change {
        Change::Link(name, node) => drop(names.insert(name.clone(), *node)),
        Change::Unlink(name) => drop(names.remove(name)),
        Change::Rename(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

impl Folder {
    fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.log.push(change);
    }
}

impl Folders {
    pub(super) fn get(&self, path: &str) -> Option<Node> {
        let (folder, name) = split(path);
        self.0.get(folder)?.now.get(name).copied()
    }

    /// The inode of a file.
    pub(super) fn file(&self, path: &str) -> Option<u64> {
        match self.get(path) {
            Some(Node::File(inode)) => Some(inode),
            _ => None,
        }
    }

    pub(super) fn has_folder(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|folder| !folder.is_removed)
    }

    /// Gives a file a name; false if its folder is not there.
    pub(super) fn link(&mut self, path: &str, inode: u64) -> bool {
        let (folder, name) = split(path);
        let Some(folder) = self.0.get_mut(folder).filter(|folder| !folder.is_removed) else {
            return false;
        };
        folder.change(Change::Link(name.to_owned(), Node::File(inode)));
        true
    }

    /// Makes a folder anew; false if what it is to stand in is not there.
    pub(super) fn make(&mut self, path: &str) -> bool {
        let (parent, name) = split(path);
        let Some(parent) = self.0.get_mut(parent).filter(|folder| !folder.is_removed) else {
            return false;
        };
        parent.change(Change::Link(name.to_owned(), Node::Folder));
        self.0.insert(path.to_owned(), Folder::default());
        true
    }

    /// Removes a folder; false if it is not there or not empty.
    pub(super) fn remove_folder(&mut self, path: &str) -> bool {
        let folder = self.0.get_mut(path).filter(|folder| !folder.is_removed);
        let Some(folder) = folder.filter(|folder| folder.now.is_empty() && !path.is_empty()) else {
            return false;
        };
        folder.is_removed = true;
        let (parent, name) = split(path);
        if let Some(parent) = self.0.get_mut(parent) {
            parent.change(Change::Unlink(name.to_owned()));
        }
        true
    }

    /// Takes a file's name away; false if there is no such file.
    pub(super) fn unlink(&mut self, path: &str) -> bool {
        let is_there = self.file(path).is_some();
        let (folder, name) = split(path);
        if is_there && let Some(folder) = self.0.get_mut(folder) {
            folder.change(Change::Unlink(name.to_owned()));
        }
        is_there
    }

    /// Renames a file; false if it or the new folder is not there.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some(inode) = self.file(from) else { return false };
        let ((old, name), (new, new_name)) = (split(from), split(to));
        if !self.has_folder(new) {
            return false;
        }
        if old != new {
            return self.link(to, inode) && self.unlink(from);
        }
        if let Some(folder) = self.0.get_mut(old) {
            folder.change(Change::Rename(name.to_owned(), new_name.to_owned()));
        }
        true
    }

    /// Makes a folder's names durable; false if it is not there.
    pub(super) fn sync(&mut self, path: &str) -> bool {
        let Some(folder) = self.0.get_mut(path) else { return false };
        for change in folder.log.drain(..) {
            apply(&mut folder.durable, &change);
        }
        true
    }

    /// A folder's entries, sorted.
    pub(super) fn list(&self, path: &str) -> Vec<Entry> {
        let entry = |(name, node): (&String, &Node)| Entry {
            name: name.clone(),
            is_dir: *node == Node::Folder,
        };
        self.0.get(path).into_iter().flat_map(|folder| folder.now.iter().map(entry)).collect()
    }

    /// Every file with its inode, by path.
    pub(super) fn files(&self) -> BTreeMap<String, u64> {
        let file = |path: &str, (name, node): (&String, &Node)| match node {
            Node::File(inode) => Some((join(path, name), *inode)),
            Node::Folder => None,
        };
        let all = self.0.iter();
        all.flat_map(|(path, folder)| folder.now.iter().filter_map(|at| file(path, at))).collect()
    }

    /// The names after a power cut.
    pub(super) fn power_cut(&self, share: f64, random: &mut Rng) -> Folders {
        let mut left = BTreeMap::new();
        let mut waiting = vec![String::new()];
        while let Some(path) = waiting.pop() {
            let Some(folder) = self.0.get(&path) else { continue };
            let mut names = folder.durable.clone();
            let kept = prefix(folder.log.len(), share, random);
            folder.log[..kept].iter().for_each(|change| apply(&mut names, change));
            let below = names.iter().filter(|(_, node)| **node == Node::Folder);
            waiting.extend(below.map(|(name, _)| join(&path, name)));
            let durable = names.clone();
            left.insert(path, Folder { now: names, durable, ..Folder::default() });
        }
        Folders(left)
    }
}
