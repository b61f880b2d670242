//! The smaller managers: events, custom attributes, privileges, options.

use super::Call;
use crate::fault::Fault;
use crate::limits;
use crate::schema::{Ref, Value, list, object};
use crate::service;
use crate::site::{CustomField, Subject};

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    match call.method {
        "QueryEvents" => query_events(call),
        "AddCustomFieldDef" => add_field(call),
        "RemoveCustomFieldDef" => remove_field(call),
        "SetField" | "setCustomValue" => set_field(call),
        "HasPrivilegeOnEntities" | "HasUserPrivilegeOnEntities" => {
            let name = if call.method == "HasPrivilegeOnEntities" { "entity" } else { "entities" };
            let entities = call.arguments.get(name).references();
            Ok(list(entities.iter().map(|entity| privileges(call, entity))))
        }
        "HasPrivilegeOnEntity" => {
            let wanted = call.arguments.get("privId").items().iter();
            Ok(list(wanted.map(|privilege| granted(call, privilege))))
        }
        "QueryOptions" => Err(Fault::new("InvalidName", "There is no such option.")
            .with("name", call.arguments.text("name"))),
        _ => Ok(Value::Absent),
    }
}

fn query_events(call: &Call) -> Result<Value, Fault> {
    let filter = call.arguments.get("filter");
    let time = |field: &str| match filter.at("time").at(field) {
        Value::Time(time) => Some(*time),
        _ => None,
    };
    let (begin, end) = (time("beginTime"), time("endTime"));
    let types: Vec<&str> =
        filter.at("eventTypeId").items().iter().filter_map(Value::text).collect();
    let entity = filter.at("entity.entity").reference();
    let most = filter.at("maxCount").number().and_then(|n| usize::try_from(n).ok());
    let mut state = call.sim.lock();
    let endpoint = call.endpoint(&mut state);
    let whole = entity.is_none_or(|entity| entity.ty != "VirtualMachine");
    let events = endpoint.events.iter().rev().filter(|event| {
        let Value::Time(at) = event.at("createdTime") else { return false };
        let about = event.at("vm.vm").reference();
        begin.is_none_or(|begin| *at >= begin)
            && end.is_none_or(|end| *at <= end)
            && (types.is_empty() || types.iter().any(|ty| ty.ends_with(event.ty())))
            && (whole || about == entity)
    });
    Ok(list(events.take(most.unwrap_or(limits::EVENTS_MAX)).cloned().collect::<Vec<_>>()))
}

fn add_field(call: &Call) -> Result<Value, Fault> {
    let name = call.arguments.text("name").to_owned();
    let mut state = call.sim.lock();
    if state.site.fields.iter().any(|field| field.name == name) {
        let object = call.this.clone();
        let fault = Fault::new("DuplicateName", format!("The name '{name}' already exists."));
        return Err(fault.with("name", name).with("object", object));
    }
    let key = state.site.fields.iter().map(|field| field.key).max().unwrap_or(100) + 1;
    state.site.fields.push(CustomField { key, name });
    let crate::sim::State { site, endpoints, .. } = &mut *state;
    for endpoint in endpoints.iter_mut() {
        service::fields(endpoint, site);
    }
    state.publish();
    let fields = call.endpoint(&mut state).model.get(&call.this.id, "field").items();
    Ok(fields.last().cloned().unwrap_or(Value::Absent))
}

fn remove_field(call: &Call) -> Result<Value, Fault> {
    let key = call.arguments.get("key").number().unwrap_or(-1);
    let mut state = call.sim.lock();
    state.site.fields.retain(|field| i64::from(field.key) != key);
    for machine in state.site.machines.values_mut() {
        machine.fields.retain(|field, _| i64::from(*field) != key);
    }
    let crate::sim::State { site, endpoints, .. } = &mut *state;
    for endpoint in endpoints.iter_mut() {
        service::fields(endpoint, site);
    }
    state.project();
    Ok(Value::Absent)
}

/// `SetField` names the entity and the number, `setCustomValue` is called on it with the name.
fn set_field(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let entity = call.arguments.get("entity").reference().unwrap_or(&call.this).clone();
    let number = call.arguments.get("key").number();
    let name = call.arguments.text("key").to_owned();
    let mut fields = state.site.fields.iter();
    let field = fields.find(|f| number == Some(i64::from(f.key)) || f.name == name);
    let key = field.map(|field| field.key).ok_or_else(|| Fault::invalid_argument("key"))?;
    let subject = call.endpoint(&mut state).subject(&entity).cloned();
    let Some(Subject::Machine(id)) = subject else {
        return Err(Fault::not_supported("The simulator keeps attributes of machines only."));
    };
    let value = call.arguments.text("value").to_owned();
    let machine = crate::tasks::machine_mut(&mut state, id)?;
    if value.is_empty() {
        machine.fields.remove(&key);
    } else {
        machine.fields.insert(key, value);
    }
    state.project();
    Ok(Value::Absent)
}

fn granted(call: &Call, privilege: &Value) -> bool {
    let privilege = privilege.text().unwrap_or_default();
    !call.sim.options.denied.iter().any(|denied| denied == privilege)
}

fn privileges(call: &Call, entity: &Ref) -> Value {
    let wanted = call.arguments.get("privId").items().iter();
    let available = wanted.map(|privilege| {
        let fields =
            [("privId", privilege.clone()), ("isGranted", granted(call, privilege).into())];
        object("PrivilegeAvailability", fields)
    });
    let fields = [("entity", entity.into()), ("privAvailability", list(available))];
    object("EntityPrivilege", fields)
}
