//! The managed objects of one endpoint, with the versions at which they changed.
//!
//! In: properties set by the site's projection and by methods. Out: properties by name, and
//! whether anything changed since a version. Every change goes through [`Model::set`],
//! [`Model::add`] and [`Model::remove`], so that no watcher can miss one.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::limits;
use crate::schema::value::coerce;
use crate::schema::{Ref, Value, list, schema};

/// One managed object.
#[derive(Debug)]
pub struct Entry {
    /// Its reference.
    pub reference: Ref,
    /// The version of its last change.
    pub version: u64,
    properties: BTreeMap<&'static str, Value>,
}

/// A view that the model keeps up to date.
#[derive(Debug)]
struct View {
    view: Ref,
    container: Ref,
    types: Vec<String>,
    recursive: bool,
}

/// The objects of an endpoint.
#[derive(Debug)]
pub struct Model {
    objects: BTreeMap<Arc<str>, Entry>,
    version: u64,
    views: Vec<View>,
    views_stale: bool,
    serial: u64,
    changed: watch::Sender<u64>,
}

/// The properties that say what hangs under an object.
const CHILDREN: &[(&str, &[&str])] = &[
    ("Folder", &["childEntity"]),
    ("Datacenter", &["vmFolder", "hostFolder", "datastoreFolder", "networkFolder"]),
    ("ComputeResource", &["resourcePool", "host", "datastore", "network"]),
    ("ResourcePool", &["resourcePool", "vm"]),
    ("HostSystem", &["vm", "datastore", "network"]),
];

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// No objects.
    #[must_use]
    pub fn new() -> Self {
        let (objects, views) = (BTreeMap::new(), Vec::new());
        let changed = watch::Sender::new(0);
        Self { objects, version: 1, views, views_stale: false, serial: 0, changed }
    }

    /// The version of the last change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Wakes its holder after changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A number that was never given before.
    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Adds an object without properties, unless it is there.
    pub fn add(&mut self, reference: &Ref) {
        if !self.objects.contains_key(&reference.id) {
            self.version += 1;
            let entry = Entry {
                reference: reference.clone(),
                version: self.version,
                properties: BTreeMap::new(),
            };
            self.objects.insert(reference.id.clone(), entry);
            self.views_stale = true;
        }
    }

    /// Takes an object away. References to it in others' properties are the caller's business.
    pub fn remove(&mut self, id: &str) {
        if self.objects.remove(id).is_some() {
            self.version += 1;
            self.views.retain(|view| *view.view.id != *id);
            self.views_stale = true;
        }
    }

    /// Sets a property of an object that is there; equal values change nothing.
    ///
    /// # Panics
    /// When the table lacks the property: a mistake in the simulator.
    pub fn set(&mut self, reference: &Ref, name: &str, value: impl Into<Value>) {
        let ty = schema().managed(reference.ty);
        let Some(field) = ty.and_then(|ty| ty.property(name)) else {
            panic!("{} has no property {name}", reference.ty)
        };
        let value = coerce(value.into(), &field.ty);
        let Some(entry) = self.objects.get_mut(&reference.id) else { return };
        if entry.properties.get(name).unwrap_or(&Value::Absent) == &value {
            return;
        }
        self.version += 1;
        entry.version = self.version;
        let links = CHILDREN.iter().any(|(_, names)| names.contains(&name));
        self.views_stale |= links;
        if value.is_absent() {
            entry.properties.remove(name);
        } else {
            entry.properties.insert(field.name, value);
        }
    }

    /// Brings views up to date and wakes whoever waits. To be called after each batch of changes.
    pub fn publish(&mut self) {
        if std::mem::take(&mut self.views_stale) {
            for at in 0..self.views.len() {
                let content = self.view_content(&self.views[at]);
                let view = self.views[at].view.clone();
                self.set(&view, "view", list(content));
            }
        }
        self.changed.send_replace(self.version);
    }

    /// An object by its id.
    #[must_use]
    pub fn entry(&self, id: &str) -> Option<&Entry> {
        self.objects.get(id)
    }

    /// All objects.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.objects.values()
    }

    /// A property's value by its path; absent when anything on the way is.
    #[must_use]
    pub fn get(&self, id: &str, path: &str) -> &Value {
        let Some(entry) = self.entry(id) else { return &Value::Absent };
        entry.get(path)
    }

    /// Adds a container view and fills it.
    pub fn add_view(&mut self, view: &Ref, container: &Ref, types: Vec<String>, recursive: bool) {
        self.add(view);
        self.set(view, "container", container);
        self.set(view, "type", list(types.iter().map(String::as_str)));
        self.set(view, "recursive", recursive);
        let view = View { view: view.clone(), container: container.clone(), types, recursive };
        self.views.push(view);
        self.views_stale = true;
        self.publish();
    }

    fn view_content(&self, view: &View) -> Vec<Ref> {
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        let mut waiting = self.children(&view.container);
        waiting.reverse();
        while let Some(at) = waiting.pop() {
            if !seen.insert(at.id.clone()) || seen.len() > limits::OBJECTS_MAX {
                continue;
            }
            if view.recursive {
                waiting.extend(self.children(&at).into_iter().rev());
            }
            let wanted =
                view.types.is_empty() || view.types.iter().any(|t| schema().is_a(at.ty, t));
            if wanted && self.entry(&at.id).is_some() {
                found.push(at);
            }
        }
        found
    }

    /// What hangs directly under an entity.
    #[must_use]
    pub fn children(&self, of: &Ref) -> Vec<Ref> {
        let Some(entry) = self.entry(&of.id) else { return Vec::new() };
        let links = CHILDREN.iter().filter(|(ty, _)| schema().is_a(entry.reference.ty, ty));
        links.flat_map(|(_, names)| *names).flat_map(|name| entry.get(name).references()).collect()
    }
}

impl Entry {
    /// A property's value by its path.
    #[must_use]
    pub fn get(&self, path: &str) -> &Value {
        let at = path.find(['.', '[']).unwrap_or(path.len());
        let (name, rest) = path.split_at(at);
        let value = self.properties.get(name).unwrap_or(&Value::Absent);
        match rest.chars().next() {
            None => value,
            Some('.') => value.at(&rest[1..]),
            Some(_) => keyed(value, rest),
        }
    }

    /// All properties that are set.
    pub fn properties(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.properties.iter().map(|(name, value)| (*name, value))
    }
}

/// `[key].rest` of an array property.
fn keyed<'a>(value: &'a Value, rest: &str) -> &'a Value {
    let Some((key, rest)) = rest[1..].split_once(']') else { return &Value::Absent };
    let key = key.trim_matches('"');
    let mut items = value.items().iter();
    let found = items.find(|item| match item.at("key") {
        Value::Int(number) => number.to_string() == key,
        other => other.text() == Some(key),
    });
    found.map_or(&Value::Absent, |item| item.at(rest.trim_start_matches('.')))
}
