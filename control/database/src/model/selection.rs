//! Which machines and disks a job takes.
//!
//! Names are patterns with `*` and `?`, compared without regard to case. Who resolves them knows the
//! inventory; here they are only text.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{self, Invalid, invalid};

/// A machine is taken if any of the first four lists names it and no exclusion does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Patterns of machines' names.
    pub patterns: Vec<String>,
    /// Folders by their path, with all that is below: `/Datacenter/vm/Production`.
    pub folders: Vec<String>,
    /// Tags, as `CATEGORY=VALUE`.
    pub tags: Vec<String>,
    /// Patterns of datastores' names: machines with a disk there.
    pub datastores: Vec<String>,
    /// Patterns of machines' names that are left out.
    pub exclude_patterns: Vec<String>,
    /// Folders that are left out.
    pub exclude_folders: Vec<String>,
    /// Tags that leave a machine out.
    pub exclude_tags: Vec<String>,
    /// Disks that are left out.
    pub exclude_disks: Vec<DiskExclusion>,
}

/// Disks that are left out: those that match every field that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DiskExclusion {
    /// Pattern of the machine's name; nothing: every machine.
    pub vm: Option<String>,
    /// Pattern of the disk's label: `Hard disk 2`.
    pub label: Option<String>,
    /// Place on its controller: `scsi0:1`.
    pub place: Option<String>,
    /// Pattern of its datastore's name.
    pub datastore: Option<String>,
}

impl Selection {
    /// Checks every list.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        let lists = [
            ("patterns", &self.patterns),
            ("folders", &self.folders),
            ("tags", &self.tags),
            ("datastores", &self.datastores),
            ("exclude_patterns", &self.exclude_patterns),
            ("exclude_folders", &self.exclude_folders),
            ("exclude_tags", &self.exclude_tags),
        ];
        lists.iter().try_for_each(|(field, list)| check::list(field, list))?;
        if lists[..4].iter().all(|(_, list)| list.is_empty()) {
            let what =
                "names no machine; give patterns (\"*\" for all), folders, tags or datastores";
            return Err(invalid("patterns", what));
        }
        for (field, tags) in [("tags", &self.tags), ("exclude_tags", &self.exclude_tags)] {
            let wrong = tags.iter().position(|tag| {
                tag.split_once('=').is_none_or(|(category, value)| {
                    category.trim().is_empty() || value.trim().is_empty()
                })
            });
            if let Some(at) = wrong {
                return Err(invalid(format!("{field}[{at}]"), "is no tag; give CATEGORY=VALUE"));
            }
        }
        check::count("exclude_disks", self.exclude_disks.len())?;
        for (at, disks) in self.exclude_disks.iter().enumerate() {
            let field = format!("exclude_disks[{at}]");
            let given = [&disks.label, &disks.place, &disks.datastore];
            if given.iter().all(|part| part.is_none()) {
                let what = "would leave out every disk; give a label, a place or a datastore";
                return Err(invalid(field, what));
            }
            let parts = given.into_iter().chain([&disks.vm]).flatten();
            parts.into_iter().try_for_each(|part| check::filled(&field, part, check::NAME_MAX))?;
        }
        Ok(())
    }
}
