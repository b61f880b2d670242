//! A chain: the link that was opened, its parent, and so on to the base.
//!
//! In: the place of the youngest link. Out: all links, youngest first. Invariant: each parent has
//! the content id that its child was made on; a chain ends at a link that says that it has no
//! parent, never at a file that is missing. Must not: go round in circles.

use std::collections::HashSet;
use std::path::Path;

use crate::datastore::Place;
use crate::error::VmdkError;
use crate::limits::CHAIN_LINKS_MAX;
use crate::link::{Link, Opener};

/// Opens the link at `place` and all that it stands on; `path` is how the caller named it.
pub(crate) fn open(opener: &mut Opener, path: &Path, place: Place) -> Result<Vec<Link>, VmdkError> {
    let mut links: Vec<Link> = Vec::new();
    let mut descriptors = HashSet::new();
    let mut place = place;
    loop {
        let from = links.last().map_or(path, |link| &link.path).to_owned();
        let first = opener.files.len();
        if links.len() == CHAIN_LINKS_MAX {
            return Err(VmdkError::ChainTooLong { path: path.to_owned(), max: CHAIN_LINKS_MAX });
        }
        let link = opener.link(&from, &place)?;
        let state = opener.files[first].state();
        if !descriptors.insert((state.device, state.inode)) {
            return Err(VmdkError::ChainTooLong { path: path.to_owned(), max: CHAIN_LINKS_MAX });
        }
        check_parent(links.last(), &link)?;
        let next = link.descriptor.as_ref().and_then(|descriptor| descriptor.parent_name.clone());
        links.push(link);
        match next {
            Some(name) => place = opener.datastore.named(&place, &name)?,
            None => return Ok(links),
        }
    }
}

/// Whether `parent` is what `child` was made on.
fn check_parent(child: Option<&Link>, parent: &Link) -> Result<(), VmdkError> {
    let Some(child) = child else { return Ok(()) };
    let expected = child.descriptor.as_ref().and_then(|descriptor| descriptor.parent_id);
    let found = parent.descriptor.as_ref().map(|descriptor| descriptor.content_id);
    match (expected, found) {
        (Some(expected), Some(found)) if expected == found => Ok(()),
        (Some(expected), Some(found)) => Err(VmdkError::ParentMismatch {
            child: child.path.clone(),
            parent: parent.path.clone(),
            expected,
            found,
        }),
        _ => Err(VmdkError::NotADisk {
            path: parent.path.clone(),
            why: format!(
                "it has no descriptor, so nothing tells that it is the parent of {}",
                child.path.display()
            ),
        }),
    }
}
