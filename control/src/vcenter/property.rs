//! Reads properties of managed objects: what to ask for, and pages of answers.
//!
//! In: types, property paths and where to begin. Out: objects with the properties that were set,
//! and those that could not be read, with the fault. Pages are bounded by
//! [`limits::PAGE_OBJECTS`].

use super::error::VimError;
use super::fault::Fault;
use super::moref::MoRef;
use super::retry::Repeat;
use super::session::VCenter;
use super::xml::Element;
use super::xml_writer::XmlWriter;
use crate::limits;

/// Properties of one type of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Properties<'a> {
    /// The type, such as `VirtualMachine`.
    pub kind: &'a str,
    /// Paths, such as `config.hardware.device`.
    pub paths: &'a [&'a str],
}

/// Where a selection begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start<'a> {
    /// These objects themselves.
    Objects(&'a [MoRef]),
    /// The objects in a container view.
    View(&'a MoRef),
}

/// A property that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its path as asked for.
    pub path: Box<str>,
    /// Its value.
    pub value: Element,
}

/// An object with its properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectContent {
    /// Which.
    pub object: MoRef,
    /// What was set.
    pub properties: Vec<Property>,
    /// What could not be read, and why.
    pub missing: Vec<(Box<str>, Fault)>,
}

impl ObjectContent {
    /// The value of a property.
    pub fn get(&self, path: &str) -> Option<&Element> {
        self.properties.iter().find(|property| &*property.path == path).map(|p| &p.value)
    }

    /// The text of a property.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.get(path).map(|value| &*value.text).filter(|text| !text.is_empty())
    }

    pub(super) fn parse(element: &Element) -> Option<ObjectContent> {
        let properties = element.all("propSet").filter_map(|set| {
            Some(Property { path: set.text_at("name")?.into(), value: set.child("val")?.clone() })
        });
        Some(ObjectContent {
            object: element.moref_at("obj")?,
            properties: properties.collect(),
            missing: parse_missing(element),
        })
    }
}

pub(super) fn parse_missing(element: &Element) -> Vec<(Box<str>, Fault)> {
    let missing = element.all("missingSet").filter_map(|set| {
        let fault = Fault::parse_localized(set.child("fault")?);
        Some((set.text_at("path").unwrap_or_default().into(), fault))
    });
    missing.collect()
}

/// Writes a `PropertyFilterSpec` as the element `name`.
pub(super) fn write_filter(
    writer: &mut XmlWriter,
    name: &str,
    properties: &[Properties<'_>],
    start: &Start<'_>,
) {
    writer.nest(name, |w| {
        for one in properties {
            w.nest("propSet", |w| {
                w.text("type", one.kind);
                for path in one.paths {
                    w.text("pathSet", path);
                }
            });
        }
        match start {
            Start::Objects(objects) => {
                for object in *objects {
                    w.nest("objectSet", |w| {
                        w.moref("obj", object);
                    });
                }
            }
            Start::View(view) => {
                w.nest("objectSet", |w| {
                    w.moref("obj", view).value("skip", true);
                    w.typed("selectSet", "TraversalSpec", |w| {
                        w.text("name", "inView").text("type", &view.kind).text("path", "view");
                        w.value("skip", false);
                    });
                });
            }
        }
    });
}

impl VCenter {
    /// Reads properties, page by page, and hands each object over as it comes.
    ///
    /// # Errors
    /// As any call; an answer that never ends is [`super::ErrorKind::Unexpected`].
    pub async fn retrieve(
        &self,
        properties: &[Properties<'_>],
        start: &Start<'_>,
        mut each: impl FnMut(ObjectContent),
    ) -> Result<(), VimError> {
        let collector = self.content().await?.property_collector.clone();
        let method = "RetrievePropertiesEx";
        let mut answer = self
            .call(method, &collector, "inventory", Repeat::Harmless, |w| {
                write_filter(w, "specSet", properties, start);
                w.nest("options", |w| {
                    w.value("maxObjects", limits::PAGE_OBJECTS);
                });
            })
            .await?;
        for _ in 0..limits::PAGES_MAX {
            // Nothing selected: no result at all.
            let Some(page) = answer.child("returnval") else { return Ok(()) };
            page.all("objects").filter_map(ObjectContent::parse).for_each(&mut each);
            let Some(token) = page.text_at("token") else { return Ok(()) };
            let next = "ContinueRetrievePropertiesEx";
            // A token is good for one answer: if that is lost, the listing is begun anew.
            answer = self
                .call(next, &collector, "inventory", Repeat::Changes, |w| {
                    w.text("token", token);
                })
                .await?;
        }
        Err(self.unexpected(method, "inventory", "its pages have no end"))
    }

    /// Reads properties of one object.
    ///
    /// # Errors
    /// As any call; [`super::FaultKind::ManagedObjectNotFound`] if it is gone. A property that may
    /// not be read is in `missing`.
    pub async fn properties_of(
        &self,
        object: &MoRef,
        name: &str,
        paths: &[&str],
    ) -> Result<ObjectContent, VimError> {
        let properties = [Properties { kind: &object.kind, paths }];
        let mut found = None;
        let objects = [object.clone()];
        self.retrieve(&properties, &Start::Objects(&objects), |content| found = Some(content))
            .await
            .map_err(|error| VimError { object: name.to_owned(), ..error })?;
        found.ok_or_else(|| self.unexpected("RetrievePropertiesEx", name, "no such object"))
    }
}
