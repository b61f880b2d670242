//! Which properties the broker asks for, and how each becomes a fact.
//!
//! In: a property's path and value (none when unset). Out: the fact is set. A path below one that
//! was asked for cannot be applied: [`Applied::Nested`] tells to read the whole property again.

use super::devices::Devices;
use super::facts::{DatastoreFacts, HostFacts, PlaceFacts, SnapshotFacts, VmFacts};
use crate::limits;
use crate::vcenter::{Element, MoRef};

/// Of a virtual machine.
pub const VM_PATHS: &[&str] = &[
    "name",
    "parent",
    "config.instanceUuid",
    "config.uuid",
    "config.template",
    "config.version",
    "config.changeTrackingEnabled",
    "config.files.vmPathName",
    "config.hardware.device",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.host",
    "guest.toolsRunningStatus",
    "guest.guestState",
    "datastore",
    "snapshot",
    "customValue",
];
/// Of a virtual machine, only where the API version is at least [`VM_KEY_SINCE`].
pub const VM_KEY_PATH: &str = "config.keyId";
/// The API version that brought encryption.
pub const VM_KEY_SINCE: (u32, u32) = (6, 5);
/// Of a host.
pub const HOST_PATHS: &[&str] = &[
    "name",
    "parent",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "summary.config.product.version",
    "summary.config.product.build",
    "datastore",
];
/// Of a datastore.
pub const DATASTORE_PATHS: &[&str] = &[
    "name",
    "parent",
    "summary.type",
    "summary.capacity",
    "summary.freeSpace",
    "summary.url",
    "summary.maintenanceMode",
    "summary.accessible",
];
/// Of a folder, datacenter, cluster or compute resource.
pub const PLACE_PATHS: &[&str] = &["name", "parent"];

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The fact is set.
    Yes,
    /// It changes a part of a property: the property must be read again.
    Nested,
    /// Nobody asked for it.
    Unknown,
}

/// What a path means to an object with these paths.
pub fn relation(asked: &[&str], path: &str) -> Applied {
    if asked.contains(&path) {
        return Applied::Yes;
    }
    let below = |one: &str| {
        path.strip_prefix(one).is_some_and(|rest| rest.starts_with(['.', '[']))
            || one.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))
    };
    if asked.iter().any(|one| below(one)) { Applied::Nested } else { Applied::Unknown }
}

/// A foreign text, cut to what the broker keeps.
pub fn text(value: Option<&str>) -> Box<str> {
    let value = value.unwrap_or_default().trim();
    if value.len() <= limits::FACT_TEXT_BYTES_MAX {
        return value.into();
    }
    let mut end = limits::FACT_TEXT_BYTES_MAX;
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value[..end].into()
}

fn text_of(value: Option<&Element>) -> Box<str> {
    text(value.map(|value| &*value.text))
}

fn flag_of(value: Option<&Element>) -> bool {
    value.and_then(Element::as_bool).unwrap_or(false)
}

fn number_of(value: Option<&Element>) -> u64 {
    value.and_then(|value| value.text.trim().parse().ok()).unwrap_or(0)
}

fn moref_of(value: Option<&Element>) -> Option<MoRef> {
    value.and_then(Element::as_moref)
}

fn morefs_of(value: Option<&Element>) -> Vec<MoRef> {
    let children = value.map(|value| value.children.as_slice()).unwrap_or_default();
    children.iter().filter_map(Element::as_moref).take(limits::OBJECT_DATASTORES_MAX).collect()
}

impl VmFacts {
    /// Sets what a property says.
    pub fn set(&mut self, path: &str, value: Option<&Element>) {
        self.unreadable.retain(|(missing, _)| &**missing != path);
        match path {
            // vCenter escapes slashes, backslashes and percent signs in names.
            "name" => self.name = unescaped(&text_of(value)),
            "parent" => self.parent = moref_of(value),
            "config.instanceUuid" => self.instance_uuid = text_of(value),
            "config.uuid" => self.bios_uuid = text_of(value),
            "config.template" => self.is_template = flag_of(value),
            "config.version" => {
                let digits = text_of(value);
                let digits = digits.strip_prefix("vmx-").unwrap_or_default();
                self.hardware_version = digits.parse().unwrap_or(0);
            }
            "config.changeTrackingEnabled" => self.change_tracking = flag_of(value),
            "config.files.vmPathName" => self.config_file = text_of(value),
            "config.hardware.device" => {
                let devices = value.map(Devices::parse).unwrap_or_default();
                self.controllers = devices.controllers;
                self.disks = devices.disks;
                self.has_vtpm = devices.has_vtpm;
            }
            "config.keyId" => self.is_encrypted = value.is_some(),
            "runtime.powerState" => self.power_state = text_of(value),
            "runtime.connectionState" => self.connection_state = text_of(value),
            "runtime.consolidationNeeded" => self.consolidation_needed = flag_of(value),
            "runtime.host" => self.host = moref_of(value),
            "guest.toolsRunningStatus" => self.tools_running = text_of(value),
            "guest.guestState" => self.guest_state = text_of(value),
            "datastore" => self.datastores = morefs_of(value),
            "snapshot" => self.snapshots = value.map(snapshots).unwrap_or_default(),
            "customValue" => self.attributes = value.map(attributes).unwrap_or_default(),
            _ => {}
        }
    }
}

impl HostFacts {
    /// Sets what a property says.
    pub fn set(&mut self, path: &str, value: Option<&Element>) {
        match path {
            "name" => self.name = unescaped(&text_of(value)),
            "parent" => self.parent = moref_of(value),
            "runtime.connectionState" => self.connection_state = text_of(value),
            "runtime.inMaintenanceMode" => self.in_maintenance = flag_of(value),
            "summary.config.product.version" => self.version = text_of(value),
            "summary.config.product.build" => self.build = text_of(value),
            "datastore" => self.datastores = morefs_of(value),
            _ => {}
        }
    }
}

impl DatastoreFacts {
    /// Sets what a property says.
    pub fn set(&mut self, path: &str, value: Option<&Element>) {
        match path {
            "name" => self.name = unescaped(&text_of(value)),
            "parent" => self.parent = moref_of(value),
            "summary.type" => self.kind = text_of(value),
            "summary.capacity" => self.capacity_bytes = number_of(value),
            "summary.freeSpace" => self.free_bytes = number_of(value),
            "summary.url" => self.url = text_of(value),
            "summary.maintenanceMode" => self.maintenance_mode = text_of(value),
            "summary.accessible" => self.is_accessible = flag_of(value),
            _ => {}
        }
    }
}

impl PlaceFacts {
    /// Sets what a property says.
    pub fn set(&mut self, path: &str, value: Option<&Element>) {
        match path {
            "name" => self.name = unescaped(&text_of(value)),
            "parent" => self.parent = moref_of(value),
            _ => {}
        }
    }
}

/// Names of vCenter's objects carry `%2f`, `%5c` and `%25` for the characters of paths.
pub fn unescaped(name: &str) -> Box<str> {
    if !name.contains('%') {
        return name.into();
    }
    let mut out = name.to_owned();
    for (escaped, character) in
        [("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%5C", "\\"), ("%25", "%")]
    {
        out = out.replace(escaped, character);
    }
    out.into_boxed_str()
}

fn attributes(value: &Element) -> Vec<(i32, Box<str>)> {
    let all = value
        .children
        .iter()
        .filter_map(|one| Some((one.number_at("key")?, text(one.text_at("value")))));
    all.take(limits::VM_ATTRIBUTES_MAX).collect()
}

/// The snapshot tree as a list, parents before children.
pub fn snapshots(value: &Element) -> Vec<SnapshotFacts> {
    let current = value.moref_at("currentSnapshot");
    let mut found: Vec<SnapshotFacts> = Vec::new();
    let mut waiting: Vec<(&Element, Option<usize>)> =
        value.all("rootSnapshotList").map(|root| (root, None)).collect();
    waiting.reverse();
    while let Some((node, parent)) = waiting.pop() {
        if found.len() >= limits::VM_SNAPSHOTS_MAX {
            break;
        }
        let Some(moref) = node.moref_at("snapshot") else { continue };
        let index = found.len();
        found.push(SnapshotFacts {
            is_current: Some(&moref) == current.as_ref(),
            moref,
            name: unescaped(&text(node.text_at("name"))),
            description: text(node.text_at("description")),
            created: text(node.text_at("createTime")),
            parent,
        });
        let children: Vec<_> = node.all("childSnapshotList").collect();
        waiting.extend(children.into_iter().rev().map(|child| (child, Some(index))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Applied, VM_PATHS, relation, snapshots, text, unescaped};
    use crate::vcenter::xml;

    #[test]
    fn a_part_of_a_property_is_recognised() {
        for (path, expected) in [
            ("config.hardware.device", Applied::Yes),
            ("config.hardware.device[2000]", Applied::Nested),
            ("config.hardware.device[2000].backing.fileName", Applied::Nested),
            ("snapshot.rootSnapshotList[\"a\"]", Applied::Nested),
            ("config", Applied::Nested),
            ("config.hardware", Applied::Nested),
            ("names", Applied::Unknown),
            ("summary.quickStats", Applied::Unknown),
        ] {
            assert_eq!(relation(VM_PATHS, path), expected, "{path}");
        }
    }

    #[test]
    fn a_snapshot_tree_becomes_a_list() {
        let node = |name: &str, inside: &str| {
            format!(
                "<snapshot type=\"VirtualMachineSnapshot\">s-{name}</snapshot><name>{name}</name>{inside}"
            )
        };
        let child = format!("<childSnapshotList>{}</childSnapshotList>", node("b", ""));
        let other = format!("<childSnapshotList>{}</childSnapshotList>", node("c%2f1", ""));
        let root = node("a", &(child + &other));
        let value = format!(
            "<val><currentSnapshot type=\"VirtualMachineSnapshot\">s-b</currentSnapshot>\
             <rootSnapshotList>{root}</rootSnapshotList></val>"
        );
        let found = snapshots(&xml::parse(value.as_bytes()).expect("XML"));
        let brief: Vec<_> = found.iter().map(|s| (&*s.name, s.parent, s.is_current)).collect();
        assert_eq!(brief, [("a", None, false), ("b", Some(0), true), ("c/1", Some(0), false)]);
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        assert_eq!(text(Some(&"é".repeat(10_000))).len(), 1024);
        assert_eq!(&*unescaped("50%25 a%2fb%5cc"), "50% a/b\\c");
    }
}
