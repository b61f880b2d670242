//! Waits for changes of properties: a property collector of one's own, its filters, its updates.
//!
//! In: what to watch. Out: [`UpdateSet`]s, in order, with a version that says where to go on.
//! Each waiter has a collector of its own, since a collector's answer covers all its filters.
//! Collectors and filters end with the session: whoever waits then begins anew.

use std::time::Duration;

use super::error::VimError;
use super::fault::Fault;
use super::moref::MoRef;
use super::property::{Properties, Start, parse_missing, write_filter};
use super::retry::Repeat;
use super::session::VCenter;
use super::xml::Element;
use crate::limits;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectEvent {
    /// It has come into the selection: all its properties follow.
    Enter,
    /// It has changed.
    Modify,
    /// It has left the selection, or is gone.
    Leave,
}

/// What happened to a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOp {
    /// It has this value now.
    Assign,
    /// This element was added to the list that it is.
    Add,
    /// It was removed, or the named element of the list was.
    Remove,
    /// As `Remove`, of something nested.
    IndirectRemove,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// A path, such as `runtime.powerState`, or with a key, `config.hardware.device[2000]`.
    pub path: Box<str>,
    /// What happened.
    pub op: ChangeOp,
    /// The new value; none if unset or removed.
    pub value: Option<Element>,
}

/// The changes of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectUpdate {
    /// Which.
    pub object: MoRef,
    /// What happened to it.
    pub event: ObjectEvent,
    /// The changes.
    pub changes: Vec<Change>,
    /// What could not be read, and why.
    pub missing: Vec<(Box<str>, Fault)>,
}

/// Changes since a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateSet {
    /// Where the next call goes on.
    pub version: String,
    /// Whether more is there already.
    pub truncated: bool,
    /// The changes, in order.
    pub updates: Vec<ObjectUpdate>,
}

/// A property collector of one's own, with one filter.
#[derive(Debug, Clone)]
pub struct Watch {
    collector: MoRef,
    /// The filter, for those who want to remove it alone.
    pub filter: MoRef,
}

impl VCenter {
    /// Begins to watch properties.
    ///
    /// # Errors
    /// As any call.
    pub async fn watch(
        &self,
        properties: &[Properties<'_>],
        start: &Start<'_>,
    ) -> Result<Watch, VimError> {
        let default = self.content().await?.property_collector.clone();
        let method = "CreatePropertyCollector";
        // One that nobody uses costs little and ends with the session.
        let answer = self.call(method, &default, "updates", Repeat::Harmless, |_| {}).await?;
        let collector = answer.moref_at("returnval");
        let collector = collector.ok_or_else(|| self.unexpected(method, "updates", "nothing"))?;
        let method = "CreateFilter";
        let created = self
            .call(method, &collector, "updates", Repeat::Changes, |w| {
                write_filter(w, "spec", properties, start);
                // A change is told as the whole property that was asked for.
                w.value("partialUpdates", false);
            })
            .await;
        let filter = match created {
            Ok(answer) => answer.moref_at("returnval"),
            Err(error) => {
                self.destroy_collector(&collector).await;
                return Err(error);
            }
        };
        let filter = filter.ok_or_else(|| self.unexpected(method, "updates", "nothing"))?;
        Ok(Watch { collector, filter })
    }

    /// Waits for changes since `version` (from the beginning without one) for about `wait`; gives
    /// nothing if there were none.
    ///
    /// # Errors
    /// As any call. [`super::FaultKind::InvalidCollectorVersion`] and a collector that is gone mean
    /// that the watch must begin anew.
    pub async fn wait_for_updates(
        &self,
        watch: &Watch,
        version: Option<&str>,
        wait: Duration,
    ) -> Result<Option<UpdateSet>, VimError> {
        let method = "WaitForUpdatesEx";
        let seconds = wait.as_secs().clamp(0, 600);
        let timeout = Duration::from_secs(seconds + limits::CALL_SECONDS_MAX);
        // Asking again for what came after the same version loses nothing.
        let answer = self
            .call_waiting(
                method,
                &watch.collector,
                "updates",
                Repeat::Harmless,
                Some(timeout),
                |w| {
                    w.optional("version", version).nest("options", |w| {
                        w.value("maxWaitSeconds", seconds)
                            .value("maxObjectUpdates", limits::PAGE_OBJECTS);
                    });
                },
            )
            .await?;
        let Some(set) = answer.child("returnval") else { return Ok(None) };
        let version = set.text_at("version");
        let version = version.ok_or_else(|| self.unexpected(method, "updates", "no version"))?;
        let updates = set.all("filterSet").flat_map(|filter| filter.all("objectSet"));
        Ok(Some(UpdateSet {
            version: version.to_owned(),
            truncated: set.bool_at("truncated").unwrap_or(false),
            updates: updates.filter_map(parse_update).collect(),
        }))
    }

    /// Makes a call that waits for this watch's updates return.
    ///
    /// # Errors
    /// As any call.
    pub async fn cancel_wait(&self, watch: &Watch) -> Result<(), VimError> {
        let method = "CancelWaitForUpdates";
        self.call(method, &watch.collector, "updates", Repeat::Harmless, |_| {}).await.map(drop)
    }

    /// Ends a watch; a failure matters little, since it ends with the session at the latest.
    pub async fn unwatch(&self, watch: Watch) {
        let method = "DestroyPropertyFilter";
        let destroyed = self.call(method, &watch.filter, "updates", Repeat::Harmless, |_| {}).await;
        if let Err(error) = destroyed {
            tracing::debug!(%error, "a filter was not removed");
        }
        self.destroy_collector(&watch.collector).await;
    }

    async fn destroy_collector(&self, collector: &MoRef) {
        let method = "DestroyPropertyCollector";
        let done = self.call(method, collector, "updates", Repeat::Harmless, |_| {}).await;
        if let Err(error) = done {
            tracing::debug!(%error, "a property collector was not removed");
        }
    }
}

fn parse_update(element: &Element) -> Option<ObjectUpdate> {
    let event = match element.text_at("kind")? {
        "enter" => ObjectEvent::Enter,
        "modify" => ObjectEvent::Modify,
        "leave" => ObjectEvent::Leave,
        _ => return None,
    };
    let changes = element.all("changeSet").filter_map(|change| {
        let op = match change.text_at("op")? {
            "assign" => ChangeOp::Assign,
            "add" => ChangeOp::Add,
            "remove" => ChangeOp::Remove,
            "indirectRemove" => ChangeOp::IndirectRemove,
            _ => return None,
        };
        let value = change.child("val").cloned();
        Some(Change { path: change.text_at("name")?.into(), op, value })
    });
    Some(ObjectUpdate {
        object: element.moref_at("obj")?,
        event,
        changes: changes.collect(),
        missing: parse_missing(element),
    })
}
