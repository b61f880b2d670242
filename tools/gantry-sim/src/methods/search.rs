//! SearchIndex: entities by identity, path, name and address.

use super::Call;
use crate::fault::Fault;
use crate::schema::{Ref, Value, list, schema};
use crate::sim::State;
use crate::site::{Machine, Subject};

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    match call.method {
        "FindByInventoryPath" => Ok(by_path(call, &mut state).into()),
        "FindChild" => {
            let entity = call.arguments.get("entity").reference().cloned();
            let entity = entity.ok_or_else(|| Fault::invalid_argument("entity"))?;
            Ok(child(call, &mut state, &entity, call.arguments.text("name")).into())
        }
        "FindAllByUuid" => Ok(list(entities(call, &mut state)?)),
        _ => Ok(entities(call, &mut state)?.into_iter().next().into()),
    }
}

/// All machines or hosts that fit the call.
fn entities(call: &Call, state: &mut State) -> Result<Vec<Ref>, Fault> {
    let datacenter = match call.arguments.get("datacenter").reference() {
        None => None,
        Some(found) => match call.endpoint(state).subject(found) {
            Some(Subject::Datacenter(number)) => Some(*number),
            _ => return Err(Fault::no_object(found)),
        },
    };
    let subjects: Vec<Subject> =
        if call.arguments.bool("vmSearch") || call.method == "FindByDatastorePath" {
            let here = |m: &&Machine| datacenter.is_none_or(|dc| m.datacenter == dc);
            let found = state.site.machines.values().filter(here).filter(|m| fits(call, state, m));
            found.map(|machine| Subject::Machine(machine.id)).collect()
        } else {
            let wanted = [call.arguments.text("uuid"), call.arguments.text("dnsName")];
            let hosts = state.site.hosts.iter().enumerate();
            let found = hosts.filter(|(_, host)| {
                wanted.iter().any(|w| {
                    !w.is_empty() && (host.uuid.eq_ignore_ascii_case(w) || host.name == *w)
                })
            });
            found.map(|(number, _)| Subject::Host(number)).collect()
        };
    let endpoint = call.endpoint(state);
    Ok(subjects.iter().filter_map(|subject| endpoint.reference(subject).cloned()).collect())
}

fn fits(call: &Call, state: &State, machine: &Machine) -> bool {
    let arguments = &call.arguments;
    match call.method {
        "FindByUuid" | "FindAllByUuid" => {
            let instance = arguments.bool("instanceUuid");
            let own = if instance { &machine.instance_uuid } else { &machine.uuid };
            own.eq_ignore_ascii_case(arguments.text("uuid"))
        }
        "FindByDnsName" => {
            machine.tools && machine.host_name.as_deref() == Some(arguments.text("dnsName"))
        }
        "FindByIp" => machine.tools && machine.ip_address.as_deref() == Some(arguments.text("ip")),
        _ => {
            let store = &state.site.datastores[machine.datastore].name;
            machine.config_file(store) == arguments.text("path")
        }
    }
}

fn by_path(call: &Call, state: &mut State) -> Option<Ref> {
    let mut at = call.endpoint(state).reference(&crate::service::ROOT).cloned()?;
    let path = call.arguments.text("inventoryPath").to_owned();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = child(call, state, &at, name)?;
    }
    Some(at)
}

/// The child of that name; `%2f` stands for a slash in a name.
fn child(call: &Call, state: &mut State, entity: &Ref, name: &str) -> Option<Ref> {
    let model = &call.endpoint(state).model;
    let name = name.replace("%2f", "/").replace("%2F", "/").replace("%25", "%");
    let children = model.children(entity).into_iter().filter(|child| {
        // Only what hangs under it in the tree, not what it merely uses.
        schema().is_a(child.ty, "ManagedEntity")
            && model.get(&child.id, "parent").reference() == Some(entity)
    });
    children.into_iter().find(|child| model.get(&child.id, "name").text() == Some(&name))
}
