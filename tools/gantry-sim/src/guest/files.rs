//! A guest's files: a POSIX tree in memory, bounded in number and size.
//!
//! In: absolute paths. Out: files, folders, or why not. No links, no owners; permissions matter only
//! where a file is run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use thiserror::Error;

use crate::limits;

/// Permissions of a file when the client says nothing (`GuestPosixFileAttributes`: 0644).
pub const PERMISSIONS: u32 = 0o644;

/// Why something about a file cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FileError {
    /// It is not there, or the folder it would be in.
    #[error("{0}: no such file or directory")]
    NotFound(String),
    /// Something is there already.
    #[error("{0}: it exists already")]
    Exists(String),
    /// A folder where a file is meant, or the other way round.
    #[error("{0}: not the right kind of file")]
    WrongKind(String),
    /// A folder that holds something.
    #[error("{0}: the directory is not empty")]
    NotEmpty(String),
    /// The path is none, or the guest has no room.
    #[error("{0}: invalid path, or no space left in the simulated guest")]
    Refused(String),
}

/// A file or folder.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its content; nothing for a folder.
    pub content: Option<Vec<u8>>,
    /// Its permissions.
    pub permissions: u32,
    /// When it was last written.
    pub modified: Timestamp,
}

impl Node {
    fn folder() -> Self {
        Self { content: None, permissions: 0o755, modified: Timestamp::now() }
    }

    /// vSphere's word for what it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.content.is_some() { "file" } else { "directory" }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.content.as_ref().map_or(4096, Vec::len)
    }
}

/// The tree: nodes by their path.
#[derive(Debug)]
pub struct Files {
    nodes: BTreeMap<String, Node>,
    serial: u64,
}

impl Default for Files {
    fn default() -> Self {
        let folders =
            ["/", "/tmp", "/var", "/var/tmp", "/root", "/home", "/etc", "/usr", "/usr/local"];
        let more = ["/usr/local/bin", "/usr/local/sbin", "/opt"];
        let nodes = folders.into_iter().chain(more);
        Self { nodes: nodes.map(|path| (path.to_owned(), Node::folder())).collect(), serial: 0 }
    }
}

/// The path in its one form: absolute, without `.`, `..`, double or trailing slashes.
fn clean(path: &str) -> Result<String, FileError> {
    let refused = || FileError::Refused(path.chars().take(limits::NAME_BYTES_MAX).collect());
    if !path.starts_with('/')
        || path.len() > limits::GUEST_PATH_BYTES_MAX
        || path.contains(char::is_control)
    {
        return Err(refused());
    }
    let mut out = String::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(refused());
        }
        let _ = write!(out, "/{part}");
    }
    if out.is_empty() {
        out.push('/');
    }
    Ok(out)
}

fn above(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

impl Files {
    /// What is there.
    ///
    /// # Errors
    /// [`FileError::NotFound`], or a path that is none.
    pub fn node(&self, path: &str) -> Result<&Node, FileError> {
        let path = clean(path)?;
        self.nodes.get(&path).ok_or(FileError::NotFound(path))
    }

    /// A file's content.
    ///
    /// # Errors
    /// When there is no file.
    pub fn read(&self, path: &str) -> Result<&[u8], FileError> {
        let content = self.node(path)?.content.as_deref();
        content.ok_or_else(|| FileError::WrongKind(path.to_owned()))
    }

    /// Whether a path may become a file: its folder is there, and no folder has its name.
    ///
    /// # Errors
    /// Why not.
    pub fn writable(&self, path: &str) -> Result<String, FileError> {
        let path = clean(path)?;
        match self.nodes.get(above(&path)) {
            None => return Err(FileError::NotFound(above(&path).to_owned())),
            Some(parent) if parent.content.is_some() => return Err(FileError::WrongKind(path)),
            Some(_) => {}
        }
        if self.nodes.get(&path).is_some_and(|node| node.content.is_none()) {
            return Err(FileError::WrongKind(path));
        }
        Ok(path)
    }

    /// Makes a file or replaces its content; permissions change only if they are given.
    ///
    /// # Errors
    /// When its folder is not there, or the guest has no room.
    pub fn write(
        &mut self,
        path: &str,
        content: Vec<u8>,
        permissions: Option<u32>,
    ) -> Result<(), FileError> {
        let path = self.writable(path)?;
        let new = !self.nodes.contains_key(&path);
        if content.len() > limits::GUEST_FILE_BYTES_MAX
            || new && self.nodes.len() >= limits::GUEST_FILES_MAX
        {
            return Err(FileError::Refused(path));
        }
        let found = self.nodes.get(&path).map(|node| node.permissions);
        let permissions = permissions.or(found).unwrap_or(PERMISSIONS);
        let node = Node { content: Some(content), permissions, modified: Timestamp::now() };
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Adds to a file, which is made if it is not there.
    ///
    /// # Errors
    /// As [`Files::write`].
    pub fn append(&mut self, path: &str, more: &[u8]) -> Result<(), FileError> {
        let mut content = self.read(path).unwrap_or_default().to_vec();
        content.extend_from_slice(more);
        self.write(path, content, None)
    }

    /// Sets a file's or folder's permissions.
    ///
    /// # Errors
    /// When it is not there.
    pub fn set_permissions(&mut self, path: &str, permissions: u32) -> Result<(), FileError> {
        let path = clean(path)?;
        let node = self.nodes.get_mut(&path).ok_or(FileError::NotFound(path))?;
        node.permissions = permissions;
        Ok(())
    }

    /// Makes a folder, with those above it if wanted.
    ///
    /// # Errors
    /// When something is there, or its folder is not.
    pub fn make_folder(&mut self, path: &str, parents: bool) -> Result<(), FileError> {
        let path = clean(path)?;
        if self.nodes.contains_key(&path) {
            return Err(FileError::Exists(path));
        }
        let parent = above(&path).to_owned();
        match self.nodes.get(&parent) {
            Some(node) if node.content.is_some() => return Err(FileError::WrongKind(parent)),
            Some(_) => {}
            None if parents => self.make_folder(&parent, true)?,
            None => return Err(FileError::NotFound(parent)),
        }
        if self.nodes.len() >= limits::GUEST_FILES_MAX {
            return Err(FileError::Refused(path));
        }
        self.nodes.insert(path, Node::folder());
        Ok(())
    }

    /// Takes a file away.
    ///
    /// # Errors
    /// When there is no file.
    pub fn delete(&mut self, path: &str) -> Result<(), FileError> {
        self.read(path)?;
        self.nodes.remove(&clean(path)?);
        Ok(())
    }

    /// Takes a folder away, with what it holds if wanted.
    ///
    /// # Errors
    /// When there is no folder, or it holds something.
    pub fn delete_folder(&mut self, path: &str, recursive: bool) -> Result<(), FileError> {
        let path = clean(path)?;
        let node = self.node(&path)?;
        if node.content.is_some() || path == "/" {
            return Err(FileError::WrongKind(path));
        }
        let inside = format!("{path}/");
        if !recursive && self.nodes.keys().any(|found| found.starts_with(&inside)) {
            return Err(FileError::NotEmpty(path));
        }
        self.nodes.retain(|found, _| *found != path && !found.starts_with(&inside));
        Ok(())
    }

    /// What is in a folder by name, or the file itself.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn list(&self, path: &str) -> Result<Vec<(String, &Node)>, FileError> {
        let path = clean(path)?;
        let node = self.node(&path)?;
        if node.content.is_some() {
            return Ok(vec![(path, node)]);
        }
        let inside = if path == "/" { path } else { format!("{path}/") };
        let all = self.nodes.iter().filter_map(|(found, node)| {
            let name = found.strip_prefix(&inside)?;
            (!name.is_empty() && !name.contains('/')).then(|| (name.to_owned(), node))
        });
        Ok(all.collect())
    }

    /// A path in a folder that nothing has yet: `PREFIXvmware12SUFFIX`.
    pub fn free_name(&mut self, folder: &str, prefix: &str, suffix: &str) -> String {
        loop {
            self.serial += 1;
            let folder = folder.trim_end_matches('/');
            let path = format!("{folder}/{prefix}vmware{}{suffix}", self.serial);
            if self.node(&path).is_err() {
                return path;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FileError, Files};

    #[test]
    fn a_tree_is_kept_and_mistakes_are_named() {
        let mut files = Files::default();
        files.write("/tmp//a.sh", b"x".to_vec(), Some(0o755)).expect("a file");
        files.append("/tmp/a.sh", b"y").expect("more");
        assert_eq!(files.read("/tmp/./a.sh"), Ok(&b"xy"[..]));
        assert_eq!(files.node("/tmp/a.sh").map(|node| node.permissions), Ok(0o755));
        assert_eq!(files.write("/no/b", Vec::new(), None), Err(FileError::NotFound("/no".into())));
        for bad in ["a", "/a/../b", "", "/a\n"] {
            assert!(matches!(files.write(bad, Vec::new(), None), Err(FileError::Refused(_))));
        }
        assert!(matches!(files.write("/tmp", Vec::new(), None), Err(FileError::WrongKind(_))));
        files.make_folder("/tmp/d/e", true).expect("folders");
        assert!(matches!(files.delete_folder("/tmp/d", false), Err(FileError::NotEmpty(_))));
        let names: Vec<_> =
            files.list("/tmp").expect("a folder").into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["a.sh", "d"]);
        files.delete_folder("/tmp/d", true).expect("gone");
        assert!(files.node("/tmp/d/e").is_err());
        assert_ne!(files.free_name("/tmp", "p", ".s"), files.free_name("/tmp", "p", ".s"));
        assert!(files.delete_folder("/", true).is_err());
    }

    #[test]
    fn a_guest_takes_no_more_than_its_limits() {
        let mut files = Files::default();
        let large = vec![0; crate::limits::GUEST_FILE_BYTES_MAX + 1];
        assert!(files.write("/tmp/large", large, None).is_err());
        let made = (0..crate::limits::GUEST_FILES_MAX + 5)
            .filter(|at| files.write(&format!("/tmp/{at}"), Vec::new(), None).is_ok())
            .count();
        assert!(made < crate::limits::GUEST_FILES_MAX);
    }
}
