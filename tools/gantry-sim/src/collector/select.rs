//! Selection: from a `PropertyFilterSpec` to objects and their properties.
//!
//! In: the specification as a client sent it, the model. Out: the objects in the order of their
//! discovery and the property paths for each. Recursive and mutually recursive selections end,
//! because no object is visited twice by the same traversal.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::fault::Fault;
use crate::limits;
use crate::model::{Entry, Model};
use crate::schema::{Ref, Value, list, object, schema};

/// A compiled filter specification.
#[derive(Debug, Clone)]
pub struct Selection {
    starts: Vec<Start>,
    traversals: Vec<Traversal>,
    properties: Vec<PropertyChoice>,
}

#[derive(Debug, Clone)]
struct Start {
    object: Ref,
    skip: bool,
    next: Vec<usize>,
}

#[derive(Debug, Clone, Default)]
struct Traversal {
    ty: String,
    path: String,
    skip: bool,
    next: Vec<usize>,
}

#[derive(Debug, Clone)]
struct PropertyChoice {
    ty: String,
    all: bool,
    paths: Vec<String>,
}

impl Selection {
    /// Compiles a specification and checks its types and properties.
    ///
    /// # Errors
    /// `InvalidArgument`, `InvalidProperty`, `InvalidType`.
    pub fn compile(spec: &Value) -> Result<Self, Fault> {
        let mut compiler = Compiler::default();
        let mut starts = Vec::new();
        for start in spec.at("objectSet").items() {
            let object = start.at("obj").reference().cloned();
            let object = object.ok_or_else(|| Fault::invalid_argument("objectSet.obj"))?;
            let skip = start.at("skip").bool().unwrap_or(false);
            let next = compiler.add_all(start.at("selectSet"))?;
            starts.push(Start { object, skip, next });
        }
        let mut properties = Vec::new();
        for choice in spec.at("propSet").items() {
            properties.push(property_choice(choice)?);
        }
        let traversals = compiler.finish()?;
        Ok(Self { starts, traversals, properties })
    }

    /// A selection of single properties of single objects' type.
    #[must_use]
    pub fn properties_of(object: &Ref, paths: &[&str]) -> Self {
        let start = Start { object: object.clone(), skip: false, next: Vec::new() };
        let choice = PropertyChoice {
            ty: object.ty.into(),
            all: false,
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        Self { starts: vec![start], traversals: Vec::new(), properties: vec![choice] }
    }

    /// The objects that match now.
    ///
    /// # Errors
    /// `ManagedObjectNotFound` when a start is not there; `InvalidArgument` when the traversals are
    /// out of all proportion.
    pub fn objects(&self, model: &Model) -> Result<Vec<Ref>, Fault> {
        let mut found = Vec::new();
        let mut reported = HashSet::new();
        let mut visited = HashSet::new();
        for start in &self.starts {
            let entry = model.entry(&start.object.id);
            let entry = entry.ok_or_else(|| Fault::no_object(&start.object))?;
            self.report(&entry.reference, start.skip, &mut reported, &mut found);
            let mut waiting = vec![(entry.reference.clone(), &start.next)];
            while let Some((at, next)) = waiting.pop() {
                for step in next {
                    if visited.len() >= limits::TRAVERSAL_STEPS_MAX {
                        return Err(Fault::invalid_argument("specSet"));
                    }
                    let traversal = &self.traversals[*step];
                    let fits = schema().is_a(at.ty, &traversal.ty);
                    if !fits || !visited.insert((at.id.clone(), *step)) {
                        continue;
                    }
                    let targets = model.get(&at.id, &traversal.path).references();
                    let mut deeper = Vec::new();
                    for target in targets.into_iter().filter(|t| model.entry(&t.id).is_some()) {
                        self.report(&target, traversal.skip, &mut reported, &mut found);
                        deeper.push((target, &traversal.next));
                    }
                    waiting.extend(deeper.into_iter().rev());
                }
            }
        }
        Ok(found)
    }

    fn report(&self, at: &Ref, skip: bool, reported: &mut HashSet<Arc<str>>, found: &mut Vec<Ref>) {
        let wanted = self.properties.iter().any(|choice| schema().is_a(at.ty, &choice.ty));
        if !skip && wanted && reported.insert(at.id.clone()) {
            found.push(at.clone());
        }
    }

    /// The chosen properties of one object that are set, by path.
    #[must_use]
    pub fn values(&self, entry: &Entry) -> Vec<(String, Value)> {
        let mut values: Vec<(String, Value)> = Vec::new();
        for choice in &self.properties {
            if !schema().is_a(entry.reference.ty, &choice.ty) {
                continue;
            }
            if choice.all {
                values.extend(entry.properties().map(|(name, v)| (name.to_owned(), v.clone())));
            }
            for path in &choice.paths {
                let value = entry.get(path);
                if !value.is_absent() {
                    values.push((path.clone(), value.clone()));
                }
            }
        }
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        values.dedup_by(|(a, _), (b, _)| a == b);
        values
    }

    /// An `ObjectContent`.
    #[must_use]
    pub fn content(&self, entry: &Entry) -> Value {
        let properties = self.values(entry).into_iter().map(|(name, value)| {
            object("DynamicProperty", [("name", name.into()), ("val", value)])
        });
        let fields = [("obj", (&entry.reference).into()), ("propSet", list(properties))];
        object("ObjectContent", fields)
    }
}

fn property_choice(choice: &Value) -> Result<PropertyChoice, Fault> {
    let ty = choice.at("type").text().unwrap_or_default().to_owned();
    let managed = schema().managed(&ty);
    // The root type is not in the table: it has no properties of its own.
    let known = managed.is_some() || matches!(&*ty, "ManagedObject" | "ExtensibleManagedObject");
    if !known {
        let message = format!("The type {ty} is unknown.");
        return Err(Fault::new("InvalidType", message).with("argument", ty));
    }
    let texts = choice.at("pathSet").items().iter().filter_map(Value::text);
    let paths: Vec<String> = texts.map(str::to_owned).collect();
    for path in &paths {
        let name = &path[..path.find(['.', '[']).unwrap_or(path.len())];
        if managed.is_none_or(|managed| managed.property(name).is_none()) {
            let message = format!("The property {path} of {ty} is invalid.");
            return Err(Fault::new("InvalidProperty", message).with("name", path.as_str()));
        }
    }
    Ok(PropertyChoice { ty, all: choice.at("all").bool().unwrap_or(false), paths })
}

/// Gathers traversals, whose selections may name others that come later.
#[derive(Default)]
struct Compiler {
    traversals: Vec<Traversal>,
    names: HashMap<String, usize>,
    named: Vec<(Owner, String)>,
    starts: usize,
}

#[derive(Clone, Copy)]
enum Owner {
    Traversal(usize),
}

impl Compiler {
    /// The traversals of a start. A start can name a traversal too: it is put in between.
    fn add_all(&mut self, set: &Value) -> Result<Vec<usize>, Fault> {
        let mut next = Vec::new();
        for spec in set.items() {
            if spec.ty() == "TraversalSpec" {
                next.push(self.add(spec)?);
            } else {
                let name = name(spec)?;
                self.starts += 1;
                self.traversals.push(Traversal::default());
                let at = self.traversals.len() - 1;
                self.named.push((Owner::Traversal(at), name));
                next.push(at);
            }
        }
        Ok(next)
    }

    fn add(&mut self, spec: &Value) -> Result<usize, Fault> {
        let text = |field: &str| spec.at(field).text().unwrap_or_default().to_owned();
        let at = self.traversals.len();
        let skip = spec.at("skip").bool().unwrap_or(false);
        let (ty, path) = (text("type"), text("path"));
        self.traversals.push(Traversal { ty, path, skip, next: Vec::new() });
        if let Some(name) = spec.at("name").text() {
            self.names.insert(name.to_owned(), at);
        }
        let next = self.add_all(spec.at("selectSet"))?;
        self.traversals[at].next = next;
        Ok(at)
    }

    /// Puts what the names stand for in the places of the names.
    fn finish(mut self) -> Result<Vec<Traversal>, Fault> {
        let mut stands_for = HashMap::new();
        for (Owner::Traversal(at), name) in &self.named {
            let target = self.names.get(name);
            let target = target.ok_or_else(|| Fault::invalid_argument("selectSet.name"))?;
            stands_for.insert(*at, *target);
        }
        for traversal in &mut self.traversals {
            for next in &mut traversal.next {
                *next = stands_for.get(next).copied().unwrap_or(*next);
            }
        }
        for (at, target) in stands_for {
            self.traversals[at] = self.traversals[target].clone();
        }
        Ok(self.traversals)
    }
}

fn name(spec: &Value) -> Result<String, Fault> {
    let name = spec.at("name").text();
    name.map(str::to_owned).ok_or_else(|| Fault::invalid_argument("selectSet.name"))
}
