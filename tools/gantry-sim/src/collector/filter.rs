//! Filters and their updates: the difference between what a client was told and what is.
//!
//! In: a selection, the model at two instants. Out: `ObjectUpdate`s with enter, modify, leave. The
//! filter keeps what it has delivered, and what it had delivered one version before, so that a client
//! that never got an answer can ask again with the older version.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fault::Fault;
use crate::model::Model;
use crate::schema::{Object, Ref, Value, list, object};

use super::Selection;

/// What a client knows: each object's version and chosen properties.
type Known = BTreeMap<Ref, (u64, Vec<(String, Value)>)>;

/// One filter.
#[derive(Debug)]
pub struct Filter {
    /// Its reference.
    pub reference: Ref,
    selection: Selection,
    /// Whether nested changes are told alone.
    partial: bool,
    known: Known,
    before: Known,
}

/// One property collector of a session: its filters and the version that they stand at.
#[derive(Debug, Default)]
pub struct Collector {
    /// The filters, by id.
    pub filters: BTreeMap<Arc<str>, Filter>,
    version: u64,
    /// How often waits were cancelled.
    pub cancelled: u64,
}

/// What a look at a collector gave.
#[derive(Debug)]
pub enum Look {
    /// Nothing changed since.
    Nothing,
    /// An `UpdateSet`.
    Updates(Value),
}

impl Filter {
    /// A filter that has delivered nothing.
    #[must_use]
    pub fn new(reference: Ref, selection: Selection, partial: bool) -> Self {
        let (known, before) = (Known::new(), Known::new());
        Self { reference, selection, partial, known, before }
    }

    /// The updates since the last delivery, at most `budget` of them, which it lowers.
    fn updates(&mut self, model: &Model, budget: &mut usize) -> (Vec<Value>, bool) {
        // A start that is gone leaves, with all that hung under it.
        let objects = self.selection.objects(model).unwrap_or_default();
        let mut updates = Vec::new();
        let mut gone: Vec<Ref> = Vec::new();
        let now: std::collections::HashSet<&Ref> = objects.iter().collect();
        for known in self.known.keys().filter(|known| !now.contains(*known)) {
            gone.push(known.clone());
        }
        for reference in gone {
            if *budget == 0 {
                return (updates, true);
            }
            *budget -= 1;
            self.known.remove(&reference);
            updates.push(update("leave", &reference, Vec::new()));
        }
        for reference in &objects {
            let Some(entry) = model.entry(&reference.id) else { continue };
            let changes = match self.known.get(reference) {
                Some((version, _)) if *version == entry.version => continue,
                Some((_, old)) => {
                    let new = self.selection.values(entry);
                    let changes = changes(old, &new, self.partial);
                    if changes.is_empty() {
                        self.known.insert(reference.clone(), (entry.version, new));
                        continue;
                    }
                    ("modify", changes, new)
                }
                None => {
                    let new = self.selection.values(entry);
                    ("enter", changes(&[], &new, false), new)
                }
            };
            if *budget == 0 {
                return (updates, true);
            }
            *budget -= 1;
            let (kind, changes, new) = changes;
            self.known.insert(reference.clone(), (entry.version, new));
            updates.push(update(kind, reference, changes));
        }
        (updates, false)
    }
}

fn update(kind: &str, reference: &Ref, changes: Vec<Value>) -> Value {
    let fields = [("kind", kind.into()), ("obj", reference.into()), ("changeSet", list(changes))];
    object("ObjectUpdate", fields)
}

fn change(name: &str, value: &Value) -> Value {
    let fields = [("name", name.into()), ("op", "assign".into()), ("val", value.clone())];
    object("PropertyChange", fields)
}

fn changes(old: &[(String, Value)], new: &[(String, Value)], partial: bool) -> Vec<Value> {
    let mut changes = Vec::new();
    for (name, value) in new {
        match old.iter().find(|(known, _)| known == name) {
            Some((_, known)) if known == value => {}
            Some((_, known)) if partial => nested(name, known, value, &mut changes),
            _ => changes.push(change(name, value)),
        }
    }
    for (name, _) in old {
        if !new.iter().any(|(known, _)| known == name) {
            changes.push(change(name, &Value::Absent));
        }
    }
    changes
}

/// The changes inside a data object, told by the path of each field; anything else as a whole.
fn nested(path: &str, old: &Value, new: &Value, changes: &mut Vec<Value>) {
    let (Value::Object(a), Value::Object(b)) = (old, new) else {
        changes.push(change(path, new));
        return;
    };
    if a.ty != b.ty {
        changes.push(change(path, new));
        return;
    }
    let names = |object: &Object| object.fields().map(|(name, _)| name).collect::<Vec<_>>();
    let mut all = names(b);
    all.extend(names(a).into_iter().filter(|name| b.get(name).is_absent()));
    for name in all.into_iter().filter(|name| a.get(name) != b.get(name)) {
        nested(&format!("{path}.{name}"), a.get(name), b.get(name), changes);
    }
}

impl Collector {
    /// The version that the client has when it has all answers.
    #[must_use]
    pub fn version_text(&self) -> String {
        if self.version == 0 { String::new() } else { self.version.to_string() }
    }

    /// Compares what the client knows (`version`, empty for nothing) with what is.
    ///
    /// # Errors
    /// `InvalidCollectorVersion` when the version is neither the last nor the one before.
    pub fn look(
        &mut self,
        version: &str,
        model: &Model,
        objects_max: usize,
    ) -> Result<Look, Fault> {
        self.rewind(version)?;
        let kept: Vec<Known> = self.filters.values().map(|f| f.known.clone()).collect();
        let mut budget = objects_max;
        let mut sets = Vec::new();
        let mut truncated = false;
        for filter in self.filters.values_mut() {
            let (updates, more) = filter.updates(model, &mut budget);
            truncated |= more;
            if !updates.is_empty() {
                let fields = [("filter", (&filter.reference).into()), ("objectSet", list(updates))];
                sets.push(object("PropertyFilterUpdate", fields));
            }
        }
        if sets.is_empty() {
            return Ok(Look::Nothing);
        }
        for (filter, known) in self.filters.values_mut().zip(kept) {
            filter.before = known;
        }
        self.version += 1;
        let mut set = Object::new("UpdateSet");
        set.set("version", self.version.to_string());
        set.set("filterSet", list(sets));
        if truncated {
            set.set("truncated", true);
        }
        Ok(Look::Updates(set.into()))
    }

    /// Goes back to what the client knew at `version`.
    fn rewind(&mut self, version: &str) -> Result<(), Fault> {
        let invalid = || Fault::new("InvalidCollectorVersion", "The version is not a current one.");
        if version.is_empty() {
            for filter in self.filters.values_mut() {
                filter.known.clear();
                filter.before.clear();
            }
            return Ok(());
        }
        let version: u64 = version.parse().map_err(|_| invalid())?;
        if version == self.version {
            return Ok(());
        }
        if version == 0 || version + 1 != self.version {
            return Err(invalid());
        }
        for filter in self.filters.values_mut() {
            filter.known = filter.before.clone();
        }
        Ok(())
    }
}
