//! The inventory as it was last told. Pure: updates in, facts out.
//!
//! In: object updates, in order; the beginning and end of a resynchronisation. Out: facts, and the
//! list of properties that must be read again. Invariant: after a resynchronisation nothing is left
//! that the vCenter did not name in it; sizes are bounded by [`crate::limits`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::facts::{DatastoreFacts, HostFacts, PlaceFacts, VmFacts};
use super::parse::{
    Applied, DATASTORE_PATHS, HOST_PATHS, PLACE_PATHS, VM_KEY_PATH, VM_PATHS, relation, text,
};
use crate::limits;
use crate::vcenter::property::ObjectContent;
use crate::vcenter::updates::{ChangeOp, ObjectEvent, ObjectUpdate};
use crate::vcenter::{Element, MoRef};

#[derive(Debug, Clone)]
enum Facts {
    Vm(Box<VmFacts>),
    Host(HostFacts),
    Datastore(DatastoreFacts),
    Place(PlaceFacts),
}

#[derive(Debug, Clone)]
struct Entry {
    facts: Facts,
    /// The resynchronisation that named it last.
    seen: u64,
}

/// The inventory of one vCenter.
#[derive(Debug, Default)]
pub struct Cache {
    entries: BTreeMap<MoRef, Entry>,
    vm_count: usize,
    round: u64,
    attribute_names: HashMap<i32, Box<str>>,
    stale: BTreeSet<MoRef>,
    refused: u64,
}

impl Facts {
    fn new(kind: &str) -> Option<Facts> {
        match kind {
            "VirtualMachine" => Some(Facts::Vm(Box::default())),
            "HostSystem" => Some(Facts::Host(HostFacts::default())),
            "Datastore" => Some(Facts::Datastore(DatastoreFacts::default())),
            "Folder"
            | "StoragePod"
            | "Datacenter"
            | "ComputeResource"
            | "ClusterComputeResource" => Some(Facts::Place(PlaceFacts::default())),
            _ => None,
        }
    }

    fn paths(&self) -> &'static [&'static str] {
        match self {
            Facts::Vm(_) => VM_PATHS,
            Facts::Host(_) => HOST_PATHS,
            Facts::Datastore(_) => DATASTORE_PATHS,
            Facts::Place(_) => PLACE_PATHS,
        }
    }

    fn set(&mut self, path: &str, value: Option<&Element>) {
        match self {
            Facts::Vm(facts) => facts.set(path, value),
            Facts::Host(facts) => facts.set(path, value),
            Facts::Datastore(facts) => facts.set(path, value),
            Facts::Place(facts) => facts.set(path, value),
        }
    }
}

impl Cache {
    /// An empty one.
    pub fn new() -> Cache {
        Cache::default()
    }

    /// A full listing begins: what it does not name is dropped at its end.
    pub fn begin_resync(&mut self) {
        self.round += 1;
        self.stale.clear();
    }

    /// The full listing has ended.
    pub fn finish_resync(&mut self) {
        let round = self.round;
        self.entries.retain(|_, entry| entry.seen == round);
        self.vm_count = self.vms().count();
    }

    /// Applies one object's changes.
    pub fn apply(&mut self, update: &ObjectUpdate) {
        match update.event {
            ObjectEvent::Leave => self.remove(&update.object),
            ObjectEvent::Enter => {
                // Begun anew: what it had before and does not name now is unset.
                self.remove(&update.object);
                self.modify(update);
            }
            ObjectEvent::Modify => self.modify(update),
        }
    }

    fn remove(&mut self, object: &MoRef) {
        self.stale.remove(object);
        if let Some(Entry { facts: Facts::Vm(_), .. }) = self.entries.remove(object) {
            self.vm_count = self.vm_count.saturating_sub(1);
        }
    }

    fn modify(&mut self, update: &ObjectUpdate) {
        let round = self.round;
        if !self.entries.contains_key(&update.object) && !self.add(&update.object) {
            return;
        }
        let Some(entry) = self.entries.get_mut(&update.object) else { return };
        entry.seen = round;
        let paths = entry.facts.paths();
        for change in &update.changes {
            let whole = matches!(change.op, ChangeOp::Assign | ChangeOp::Remove)
                || change.op == ChangeOp::IndirectRemove;
            let meant = if &*change.path == VM_KEY_PATH {
                Applied::Yes
            } else {
                relation(paths, &change.path)
            };
            match meant {
                Applied::Yes if whole => {
                    let value = (change.op == ChangeOp::Assign).then_some(change.value.as_ref());
                    entry.facts.set(&change.path, value.flatten());
                }
                // An element was added to a list that we keep whole.
                Applied::Yes | Applied::Nested => {
                    self.stale.insert(update.object.clone());
                }
                Applied::Unknown => {}
            }
        }
        if let Facts::Vm(facts) = &mut entry.facts {
            note_missing(facts, &update.missing);
        }
    }

    /// Makes an empty entry; false if its type does not matter or there are too many.
    fn add(&mut self, object: &MoRef) -> bool {
        let Some(facts) = Facts::new(&object.kind) else { return false };
        let is_vm = matches!(facts, Facts::Vm(_));
        let others = self.entries.len() - self.vm_count;
        let full = if is_vm {
            self.vm_count >= limits::BROKER_VMS_MAX
        } else {
            others >= limits::BROKER_PLACES_MAX
        };
        if full {
            self.refused += 1;
            return false;
        }
        self.vm_count += usize::from(is_vm);
        self.entries.insert(object.clone(), Entry { facts, seen: self.round });
        true
    }

    /// Objects of which a part of a property has changed: read them again, then [`Cache::renew`].
    pub fn take_stale(&mut self) -> Vec<MoRef> {
        std::mem::take(&mut self.stale).into_iter().collect()
    }

    /// Sets an object's properties from a fresh read of all of them.
    pub fn renew(&mut self, content: &ObjectContent) {
        let Some(entry) = self.entries.get_mut(&content.object) else { return };
        for path in entry.facts.paths() {
            entry.facts.set(path, content.get(path));
        }
        if let Facts::Vm(facts) = &mut entry.facts {
            note_missing(facts, &content.missing);
        }
    }

    /// The properties by which an object is read again.
    pub fn paths_of(object: &MoRef) -> &'static [&'static str] {
        Facts::new(&object.kind).map_or(&[], |facts| facts.paths())
    }

    /// Sets the names of custom attributes.
    pub fn set_attribute_names(&mut self, names: HashMap<i32, Box<str>>) {
        self.attribute_names = names;
    }

    /// Whether a machine has a value of an attribute whose name is not known.
    pub fn lacks_attribute_names(&self) -> bool {
        let unknown = |facts: &VmFacts| {
            facts.attributes.iter().any(|(key, _)| !self.attribute_names.contains_key(key))
        };
        self.vms().any(|(_, facts)| unknown(facts))
    }

    /// Objects that were not kept, since there were too many.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// All virtual machines.
    pub fn vms(&self) -> impl Iterator<Item = (&MoRef, &VmFacts)> {
        self.entries.iter().filter_map(|(moref, entry)| match &entry.facts {
            Facts::Vm(facts) => Some((moref, &**facts)),
            _ => None,
        })
    }

    /// All datastores.
    pub fn datastores(&self) -> impl Iterator<Item = (&MoRef, &DatastoreFacts)> {
        self.entries.iter().filter_map(|(moref, entry)| match &entry.facts {
            Facts::Datastore(facts) => Some((moref, facts)),
            _ => None,
        })
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = (&MoRef, &HostFacts)> {
        self.entries.iter().filter_map(|(moref, entry)| match &entry.facts {
            Facts::Host(facts) => Some((moref, facts)),
            _ => None,
        })
    }

    /// One virtual machine.
    pub fn vm(&self, moref: &MoRef) -> Option<&VmFacts> {
        match &self.entries.get(moref)?.facts {
            Facts::Vm(facts) => Some(facts),
            _ => None,
        }
    }

    /// The machine with this instance UUID.
    pub fn vm_by_instance_uuid(&self, uuid: &str) -> Option<(&MoRef, &VmFacts)> {
        self.vms().find(|(_, facts)| facts.instance_uuid.eq_ignore_ascii_case(uuid))
    }

    /// One host.
    pub fn host(&self, moref: &MoRef) -> Option<&HostFacts> {
        match &self.entries.get(moref)?.facts {
            Facts::Host(facts) => Some(facts),
            _ => None,
        }
    }

    /// One datastore.
    pub fn datastore(&self, moref: &MoRef) -> Option<&DatastoreFacts> {
        match &self.entries.get(moref)?.facts {
            Facts::Datastore(facts) => Some(facts),
            _ => None,
        }
    }

    /// A host's cluster, by name; a standalone host has none.
    pub fn cluster_of(&self, host: &MoRef) -> Option<&str> {
        let parent = self.host(host)?.parent.as_ref()?;
        if &*parent.kind != "ClusterComputeResource" {
            return None;
        }
        self.place(parent).map(|(name, _)| name)
    }

    /// The datacenter that an object is in, by name.
    pub fn datacenter_of(&self, object: &MoRef) -> Option<&str> {
        let mut at = object.clone();
        for _ in 0..limits::FOLDER_DEPTH_MAX {
            if &*at.kind == "Datacenter" {
                return self.place(&at).map(|(name, _)| name);
            }
            at = self.parent_of(&at)?.clone();
        }
        None
    }

    /// The folder of a machine as a path, such as `/DC0/vm/Web`; on ESXi the part that is known.
    pub fn folder_of(&self, facts: &VmFacts) -> String {
        let mut names: Vec<&str> = Vec::new();
        let mut at = facts.parent.as_ref();
        while let Some((name, parent)) = at.and_then(|moref| self.place(moref))
            && names.len() < limits::FOLDER_DEPTH_MAX
        {
            // The root folder has no parent, and nobody writes its name.
            if parent.is_some() {
                names.push(name);
            }
            at = parent;
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + name)
    }

    /// A machine's custom attributes by name.
    pub fn attributes_of<'a>(
        &'a self,
        facts: &'a VmFacts,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        facts.attributes.iter().filter_map(|(key, value)| {
            self.attribute_names.get(key).map(|name| (&**name, &**value))
        })
    }

    fn place(&self, moref: &MoRef) -> Option<(&str, Option<&MoRef>)> {
        match &self.entries.get(moref)?.facts {
            Facts::Place(facts) => Some((&facts.name, facts.parent.as_ref())),
            _ => None,
        }
    }

    fn parent_of(&self, moref: &MoRef) -> Option<&MoRef> {
        match &self.entries.get(moref)?.facts {
            Facts::Vm(facts) => facts.parent.as_ref(),
            Facts::Host(facts) => facts.parent.as_ref(),
            Facts::Datastore(facts) => facts.parent.as_ref(),
            Facts::Place(facts) => facts.parent.as_ref(),
        }
    }

    /// An estimate of the memory that it all takes, in bytes: what is counted is every text, every
    /// fixed part, and a share for the allocator and the trees.
    pub fn estimated_bytes(&self) -> usize {
        let all = self.entries.iter();
        let each = all.map(|(moref, entry)| {
            let inside = match &entry.facts {
                Facts::Vm(facts) => size_of::<VmFacts>() + super::size::vm_bytes(facts),
                Facts::Host(facts) => super::size::host_bytes(facts),
                Facts::Datastore(facts) => super::size::datastore_bytes(facts),
                Facts::Place(facts) => super::size::place_bytes(facts),
            };
            size_of::<MoRef>() + size_of::<Entry>() + super::size::moref_bytes(moref) + inside
        });
        each.sum::<usize>() * 5 / 4
    }
}

fn note_missing(facts: &mut VmFacts, missing: &[(Box<str>, crate::vcenter::Fault)]) {
    for (path, fault) in missing.iter().take(VM_PATHS.len()) {
        facts.unreadable.retain(|(known, _)| known != path);
        facts.unreadable.push((path.clone(), text(Some(&fault.to_string()))));
    }
}

#[cfg(test)]
mod tests;
