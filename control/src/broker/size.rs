//! How much memory facts take, for the test that holds the broker's bound and for its report.

use super::facts::{DatastoreFacts, DiskFacts, HostFacts, PlaceFacts, SnapshotFacts, VmFacts};
use crate::vcenter::MoRef;

/// What the allocator adds to one allocation.
const ALLOCATION_BYTES: usize = 16;

fn text(text: &str) -> usize {
    if text.is_empty() { 0 } else { text.len() + ALLOCATION_BYTES }
}

/// The texts of a reference.
pub(super) fn moref_bytes(moref: &MoRef) -> usize {
    text(&moref.kind) + text(&moref.value)
}

fn optional(moref: Option<&MoRef>) -> usize {
    moref.map_or(0, moref_bytes)
}

fn morefs(morefs: &[MoRef]) -> usize {
    morefs.iter().map(|moref| size_of::<MoRef>() + moref_bytes(moref)).sum()
}

/// What a machine's facts hold beside their fixed part.
pub(super) fn vm_bytes(facts: &VmFacts) -> usize {
    let VmFacts { name, instance_uuid, bios_uuid, power_state, connection_state, .. } = facts;
    let texts = [name, instance_uuid, bios_uuid, power_state, connection_state];
    let more = [&facts.tools_running, &facts.guest_state, &facts.config_file];
    let texts: usize = texts.into_iter().chain(more).map(|one| text(one)).sum();
    let attributes: usize = facts.attributes.iter().map(|(_, value)| 24 + text(value)).sum();
    let unreadable: usize = facts.unreadable.iter().map(|(a, b)| 32 + text(a) + text(b)).sum();
    let controllers: usize = facts.controllers.values().map(|one| 96 + text(&one.model)).sum();
    let disks: usize = facts.disks.values().map(disk_bytes).sum();
    let snapshots: usize = facts.snapshots.iter().map(snapshot_bytes).sum();
    let references = optional(facts.parent.as_ref()) + optional(facts.host.as_ref());
    let datastores = morefs(&facts.datastores);
    texts + attributes + unreadable + controllers + disks + snapshots + references + datastores
}

fn disk_bytes(disk: &DiskFacts) -> usize {
    let chain: usize = disk.chain.iter().map(|file| 16 + text(file)).sum();
    let change_id = disk.change_id.as_deref().map_or(0, text);
    let texts = text(&disk.label) + text(&disk.uuid) + text(&disk.file) + change_id;
    size_of::<DiskFacts>() + chain + texts + optional(disk.datastore.as_ref())
}

fn snapshot_bytes(snapshot: &SnapshotFacts) -> usize {
    let texts = text(&snapshot.name) + text(&snapshot.description) + text(&snapshot.created);
    size_of::<SnapshotFacts>() + moref_bytes(&snapshot.moref) + texts
}

/// As [`vm_bytes`].
pub(super) fn host_bytes(facts: &HostFacts) -> usize {
    let HostFacts { name, connection_state, version, build, .. } = facts;
    let texts: usize = [name, connection_state, version, build].into_iter().map(|t| text(t)).sum();
    texts + optional(facts.parent.as_ref()) + morefs(&facts.datastores)
}

/// As [`vm_bytes`].
pub(super) fn datastore_bytes(facts: &DatastoreFacts) -> usize {
    let DatastoreFacts { name, kind, url, maintenance_mode, .. } = facts;
    let texts: usize = [name, kind, url, maintenance_mode].into_iter().map(|t| text(t)).sum();
    texts + optional(facts.parent.as_ref())
}

/// As [`vm_bytes`].
pub(super) fn place_bytes(facts: &PlaceFacts) -> usize {
    text(&facts.name) + optional(facts.parent.as_ref())
}
