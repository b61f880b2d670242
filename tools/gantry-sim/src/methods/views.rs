//! ViewManager: container views and list views.

use super::Call;
use crate::fault::Fault;
use crate::limits;
use crate::schema::{Ref, Value, list, reference, schema};

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    match call.method {
        "CreateContainerView" => {
            let container = call.arguments.get("container").reference().cloned();
            let container = container.ok_or_else(|| Fault::invalid_argument("container"))?;
            let types = call.arguments.get("type").items().iter().filter_map(Value::text);
            let types: Vec<String> = types.map(str::to_owned).collect();
            let recursive = call.arguments.bool("recursive");
            create(call, "ContainerView", |call, state, view| {
                let model = &mut call.endpoint(state).model;
                let Some(found) = model.entry(&container.id) else {
                    return Err(Fault::no_object(&container));
                };
                let container = found.reference.clone();
                if !schema().is_a(container.ty, "ManagedEntity") {
                    return Err(Fault::invalid_argument("container"));
                }
                model.add_view(view, &container, types, recursive);
                Ok(())
            })
        }
        "CreateListView" => create(call, "ListView", |call, state, view| {
            let content = call.arguments.get("obj").references();
            let model = &mut call.endpoint(state).model;
            model.add(view);
            model.set(view, "view", list(content));
            Ok(())
        }),
        "DestroyView" => {
            let mut state = call.sim.lock();
            let endpoint = call.endpoint(&mut state);
            if let Some(session) = endpoint.sessions.get(call.cookie()?) {
                session.views.retain(|view| *view != call.this);
            }
            endpoint.model.remove(&call.this.id);
            Ok(Value::Absent)
        }
        _ => change_list(call),
    }
}

fn create(
    call: &Call,
    ty: &str,
    fill: impl FnOnce(&Call, &mut crate::sim::State, &Ref) -> Result<(), Fault>,
) -> Result<Value, Fault> {
    let cookie = call.cookie()?;
    let mut state = call.sim.lock();
    let session = call.endpoint(&mut state).sessions.get(cookie);
    let session = session.ok_or_else(|| Fault::not_authenticated(&call.this))?;
    if session.views.len() >= limits::VIEWS_MAX {
        return Err(Fault::new("LimitExceeded", "Too many views."));
    }
    let view = reference(ty, format!("session[{}]{}", session.key, crate::site::random_uuid()));
    fill(call, &mut state, &view)?;
    if let Some(session) = call.endpoint(&mut state).sessions.get(cookie) {
        session.views.push(view.clone());
    }
    Ok(view.into())
}

/// `ModifyListView` and `ResetListView`: returns what is not there.
fn change_list(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let model = &mut call.endpoint(&mut state).model;
    let mut content = model.get(&call.this.id, "view").references();
    let wanted = if call.method == "ResetListView" {
        content.clear();
        call.arguments.get("obj").references()
    } else {
        let removed = call.arguments.get("remove").references();
        content.retain(|found| !removed.contains(found));
        call.arguments.get("add").references()
    };
    let (there, missing): (Vec<Ref>, Vec<Ref>) =
        wanted.into_iter().partition(|found| model.entry(&found.id).is_some());
    for found in there {
        if !content.contains(&found) && content.len() < limits::OBJECTS_MAX {
            content.push(found);
        }
    }
    model.set(&call.this, "view", list(content));
    model.publish();
    Ok(list(missing))
}
