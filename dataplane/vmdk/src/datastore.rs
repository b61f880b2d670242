//! The folders that files may come from, and how names in descriptors are found in them.
//!
//! In: a name as a descriptor has it. Out: a [`Place`], and an open [`SourceFile`] of it.
//! Invariants: a file is opened with O_RDONLY and is a regular file; unless the options allow it,
//! the kernel itself refuses (openat2 with RESOLVE_BENEATH) whatever would leave the folder, by `..`,
//! by an absolute name or by a symbolic link, also if it changes meanwhile.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::VmdkError;
use crate::source_file::SourceFile;

/// Where hosts keep datastores; the next component is a volume's id or label.
const VOLUMES: &str = "/vmfs/volumes/";
/// Bytes of a file's name with its folders.
const NAME_BYTES_MAX: usize = 4096;

/// A file within one of the folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    root: usize,
    relative: PathBuf,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    folder: OwnedFd,
}

/// The folders.
#[derive(Debug)]
pub(crate) struct Datastore {
    /// The first is the one of the image; the others those of mapped volumes.
    roots: Vec<Root>,
    volumes: HashMap<String, usize>,
    leave_root: bool,
}

impl Datastore {
    /// Opens the folders.
    pub(crate) fn open(
        root: &Path,
        volumes: &[(String, PathBuf)],
        leave_root: bool,
    ) -> Result<Datastore, VmdkError> {
        let mut roots = vec![open_root(root)?];
        let mut by_name = HashMap::new();
        for (name, path) in volumes {
            by_name.insert(name.clone(), roots.len());
            roots.push(open_root(path)?);
        }
        Ok(Datastore { roots, volumes: by_name, leave_root })
    }

    /// The place of the image itself, which the caller names by a path of this machine.
    pub(crate) fn image(&self, path: &Path) -> Result<Place, VmdkError> {
        let root = &self.roots[0].path;
        if let Ok(relative) = path.strip_prefix(root) {
            return Ok(Place { root: 0, relative: relative.to_owned() });
        }
        // The same folder by another name: compare what both really are.
        let open = |source| VmdkError::Open { path: path.to_owned(), source, hint: "" };
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let real_folder = folder.canonicalize().map_err(open)?;
        let real_root = root.canonicalize().map_err(open)?;
        let file_name = path.file_name().map(PathBuf::from).unwrap_or_default();
        match real_folder.strip_prefix(&real_root) {
            Ok(relative) => Ok(Place { root: 0, relative: relative.join(file_name) }),
            Err(_) => Err(self.outside(path, &path.to_string_lossy(), 0)),
        }
    }

    /// The place of `name`, which stands in the descriptor at `from`.
    pub(crate) fn named(&self, from: &Place, name: &str) -> Result<Place, VmdkError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
            let why = format!("the name of a file has {} bytes or a zero byte", name.len());
            return Err(VmdkError::Descriptor { path: self.path(from), line: 0, why });
        }
        let path = Path::new(name);
        if !path.is_absolute() {
            let folder = from.relative.parent().unwrap_or(Path::new(""));
            return Ok(Place { root: from.root, relative: folder.join(path) });
        }
        if let Some((volume, rest)) = name.strip_prefix(VOLUMES).and_then(|r| r.split_once('/')) {
            if let Some(&root) = self.volumes.get(volume) {
                return Ok(Place { root, relative: PathBuf::from(rest.trim_start_matches('/')) });
            }
            // A host's name of a folder that is mounted elsewhere here: deltas and extents stand
            // beside each other, and the content id tells if this is another file of that name.
            return self
                .beside(from, path)
                .ok_or_else(|| self.outside(&self.path(from), name, from.root));
        }
        for (root, folder) in self.roots.iter().enumerate() {
            if let Ok(relative) = path.strip_prefix(&folder.path) {
                return Ok(Place { root, relative: relative.to_owned() });
            }
        }
        Err(self.outside(&self.path(from), name, from.root))
    }

    /// The file of the same name in the folder of `from`.
    fn beside(&self, from: &Place, path: &Path) -> Option<Place> {
        let folder = from.relative.parent().unwrap_or(Path::new(""));
        Some(Place { root: from.root, relative: folder.join(path.file_name()?) })
    }

    /// The path of a place, for people.
    pub(crate) fn path(&self, place: &Place) -> PathBuf {
        self.roots[place.root].path.join(&place.relative)
    }

    /// Opens the file at `place`, which `from` names.
    pub(crate) fn open_file(&self, from: &Path, place: &Place) -> Result<SourceFile, VmdkError> {
        let path = self.path(place);
        let file = self.open_at(place).map_err(|errno| match errno {
            Errno::XDEV | Errno::LOOP => {
                self.outside(from, &place.relative.to_string_lossy(), place.root)
            }
            errno => {
                VmdkError::Open { hint: hint(errno), path: path.clone(), source: errno.into() }
            }
        })?;
        SourceFile::new(path, place.clone(), file)
    }

    /// Opens a place without waiting (a pipe would wait for its writer).
    pub(crate) fn open_at(&self, place: &Place) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let folder = &self.roots[place.root].folder;
        if self.leave_root {
            return rustix::fs::openat(folder, &place.relative, flags, Mode::empty());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(folder, &place.relative, flags, Mode::empty(), resolve)
    }

    fn outside(&self, from: &Path, named: &str, root: usize) -> VmdkError {
        VmdkError::OutsideDatastore {
            from: from.to_owned(),
            named: named.chars().take(200).collect(),
            root: self.roots[root].path.clone(),
        }
    }
}

fn open_root(path: &Path) -> Result<Root, VmdkError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| VmdkError::Open {
        path: path.to_owned(),
        source: errno.into(),
        hint: "; is the datastore mounted there?",
    })?;
    Ok(Root { path: path.to_owned(), folder })
}

/// The folder of `path`, and a form of `path` that begins with it.
pub(crate) fn folder_of(path: &Path) -> (PathBuf, PathBuf) {
    let name = path.file_name().map(OsString::from).unwrap_or_default();
    let folder = match path.parent() {
        Some(parent) if parent.components().next().is_some() => parent.to_owned(),
        _ => PathBuf::from(Component::CurDir.as_os_str()),
    };
    let joined = folder.join(name);
    (folder, joined)
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => "; the mover's user needs to read the datastore's files",
        Errno::MFILE | Errno::NFILE => "; raise the limit of open files of the mover",
        Errno::NOENT => "; it is missing, or its name is written in another encoding",
        Errno::NOSYS => "; this needs Linux 5.6 or later",
        _ => "",
    }
}
