//! Events of the past, as a vCenter keeps them.
//!
//! In: an object, since when, of which types. Out: what happened, bounded; an endpoint answers with at
//! most 1,000. Source: the vSphere Web Services API reference, `EventManager.QueryEvents`.

use super::error::VimError;
use super::moref::VmRef;
use super::retry::Repeat;
use super::session::VCenter;
use super::soap::quoted;
use super::xml::Element;
use crate::limits;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFact {
    /// Its type: `vim.event.…` as its class, or the id of an extended event.
    pub kind: String,
    /// When, as the server prints it.
    pub created: String,
    /// Of a task's event: what the task did, such as `VirtualMachine.revertToCurrentSnapshot`.
    pub task: Option<String>,
}

impl VCenter {
    /// What happened to a machine since then (RFC 3339) of these types, oldest first as a rule.
    ///
    /// # Errors
    /// As any call; an endpoint without an event manager is `Unexpected`.
    pub async fn events_of(
        &self,
        vm: &VmRef,
        since: &str,
        kinds: &[&str],
    ) -> Result<Vec<EventFact>, VimError> {
        let (method, object) = ("QueryEvents", vm.to_string());
        let manager = self.content().await?.event_manager.clone();
        let manager =
            manager.ok_or_else(|| self.unexpected(method, &object, "there is no event manager"))?;
        let answer = self
            .call(method, &manager, &object, Repeat::Harmless, |w| {
                w.nest("filter", |w| {
                    w.nest("entity", |w| {
                        w.moref("entity", &vm.moref).text("recursion", "self");
                    });
                    w.nest("time", |w| {
                        w.text("beginTime", since);
                    });
                    for kind in kinds {
                        w.text("eventTypeId", kind);
                    }
                });
            })
            .await?;
        Ok(answer.all("returnval").map(fact).take(limits::EVENTS_MAX).collect())
    }
}

fn fact(event: &Element) -> EventFact {
    let text = |path: &str| event.text_at(path).map(quoted);
    EventFact {
        kind: text("eventTypeId").unwrap_or_else(|| format!("vim.event.{}", quoted(event.kind()))),
        created: text("createdTime").unwrap_or_default(),
        task: text("info.descriptionId"),
    }
}
