//! `QueryChangedDiskAreas`: one page of it. What the pages mean together is `cbt`'s business.

use gantry_common::extents::Extent;

use super::error::VimError;
use super::moref::{MoRef, VmRef};
use super::retry::Repeat;
use super::session::VCenter;

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChangeQuery<'a> {
    /// The snapshot whose disk is asked about.
    pub snapshot: &'a MoRef,
    /// The disk's device key.
    pub device_key: i32,
    /// Bytes from the disk's beginning.
    pub start: u64,
    /// The change id of the base, or `*` for what is allocated.
    pub change_id: &'a str,
}

/// One answer, as it came: nothing in it is checked yet but that numbers are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedAreas {
    /// The first byte that the answer covers.
    pub start: u64,
    /// Bytes that it covers.
    pub length: u64,
    /// What changed in there.
    pub areas: Vec<Extent>,
}

impl VCenter {
    /// Asks which areas of a disk have changed since a change id.
    ///
    /// # Errors
    /// As any call; an answer without numbers is [`super::ErrorKind::Unexpected`].
    pub async fn query_changed_disk_areas(
        &self,
        vm: &VmRef,
        query: &DiskChangeQuery<'_>,
    ) -> Result<ChangedAreas, VimError> {
        let method = "QueryChangedDiskAreas";
        let object = format!("{vm}, disk {}", query.device_key);
        let answer = self
            .call(method, &vm.moref, &object, Repeat::Harmless, |w| {
                w.moref("snapshot", query.snapshot)
                    .value("deviceKey", query.device_key)
                    .value("startOffset", query.start)
                    .text("changeId", query.change_id);
            })
            .await?;
        let unexpected = |what| self.unexpected(method, &object, what);
        let info = answer.child("returnval").ok_or_else(|| unexpected("nothing"))?;
        let number = |element: &super::Element, name| element.number_at::<u64>(name);
        let areas: Option<Vec<Extent>> = info
            .all("changedArea")
            .map(|area| {
                Some(Extent { start: number(area, "start")?, length: number(area, "length")? })
            })
            .collect();
        Ok(ChangedAreas {
            start: number(info, "startOffset").ok_or_else(|| unexpected("no startOffset"))?,
            length: number(info, "length").ok_or_else(|| unexpected("no length"))?,
            areas: areas.ok_or_else(|| unexpected("an area that is none"))?,
        })
    }
}
