//! Events of an endpoint, as `QueryEvents` gives them.
//!
//! In: what methods did. Out: the newest events, bounded.

use crate::limits;
use crate::schema::{object, schema};
use crate::sim::State;
use crate::site::Subject;

/// Notes an event about a machine, or about nothing.
pub fn note(
    state: &mut State,
    endpoint: usize,
    user: &str,
    ty: &str,
    machine: Option<u32>,
    message: String,
) {
    let name = machine.and_then(|id| state.site.machines.get(&id)).map(|m| m.name.clone());
    let endpoint = &mut state.endpoints[endpoint];
    let key = endpoint.model.next_serial();
    let vm = machine.and_then(|id| endpoint.reference(&Subject::Machine(id)).cloned());
    let vm = vm
        .zip(name)
        .map(|(vm, name)| object("VmEventArgument", [("name", name.into()), ("vm", vm.into())]));
    let mut fields = vec![
        ("key", key.into()),
        ("chainId", key.into()),
        ("createdTime", jiff::Timestamp::now().into()),
        ("userName", user.into()),
        ("vm", vm.into()),
        ("fullFormattedMessage", message.into()),
    ];
    if schema().is_a(ty, "VmEvent") {
        fields.push(("template", false.into()));
    }
    endpoint.events.push(object(ty, fields));
    if endpoint.events.len() > limits::EVENTS_MAX {
        endpoint.events.remove(0);
    }
}

/// The event that a method's task leaves when it succeeds.
#[must_use]
pub fn of_method(method: &str) -> Option<&'static str> {
    match method {
        "ReconfigVM_Task" => Some("VmReconfiguredEvent"),
        "PowerOnVM_Task" => Some("VmPoweredOnEvent"),
        "PowerOffVM_Task" => Some("VmPoweredOffEvent"),
        _ => None,
    }
}
