//! Tasks: what a `_Task` method does after it has answered.
//!
//! In: the work of a method. Out: a Task object that goes from running to success or error. Work
//! blocks (it is the disk engine's) and runs on its own thread; a machine has one task at a time.

use std::sync::Arc;

use jiff::Timestamp;

use crate::events;
use crate::fault::Fault;
use crate::limits;
use crate::methods::Call;
use crate::requests::Phase;
use crate::schema::{Object, Ref, Value, list, object, reference};
use crate::sim::{Endpoint, Kind, Sim, State};
use crate::site::{Machine, Subject};

/// Starts a task on an entity. The work gets the simulator and gives the task's result.
pub fn start(
    call: &Call,
    entity: Option<Ref>,
    work: impl FnOnce(&Arc<Sim>) -> Result<Value, Fault> + Send + 'static,
) -> Value {
    let (sim, at) = (call.sim.clone(), call.origin.endpoint);
    let (verdict, seen) = (call.origin.task.clone(), call.origin.seen.clone());
    let task = {
        let mut state = sim.lock();
        let task = begin(call, &mut state.endpoints[at], entity.as_ref());
        state.publish();
        task
    };
    let made = task.clone();
    tokio::spawn(async move {
        tokio::time::sleep(sim.options.task_time + verdict.delay).await;
        let working = sim.clone();
        let done = match verdict.fault {
            Some(fault) if !verdict.done => Err(fault),
            fault => {
                let done = tokio::task::spawn_blocking(move || work(&working)).await;
                let done = done.unwrap_or_else(|_| Err(Fault::system_error()));
                fault.map_or(done, Err)
            }
        };
        if let Some(seen) = seen {
            sim.show_request(&seen, Phase::TaskWorked).await;
        }
        let mut state = sim.lock();
        finish(&mut state.endpoints[at], &task, done);
        state.publish();
    });
    made.into()
}

/// Starts a task on the machine that the call is about, unless it has one already.
///
/// # Errors
/// `ManagedObjectNotFound` when the object is no machine's or snapshot's.
pub fn start_on_machine(
    call: &Call,
    work: impl FnOnce(&Arc<Sim>) -> Result<Value, Fault> + Send + 'static,
) -> Result<Value, Fault> {
    let machine = machine_of(call)?;
    let entity = {
        let mut state = call.sim.lock();
        call.endpoint(&mut state).reference(&Subject::Machine(machine)).cloned()
    };
    let (at, method) = (call.origin.endpoint, call.method);
    Ok(start(call, entity, move |sim| {
        take(sim, machine)?;
        let done = work(sim);
        let mut state = sim.lock();
        if let Some(ty) = events::of_method(method).filter(|_| done.is_ok()) {
            let user = &sim.options.user;
            events::note(&mut state, at, user, ty, Some(machine), format!("{method} by {user}"));
        }
        if let Some(machine) = state.site.machines.get_mut(&machine) {
            machine.busy = false;
        }
        state.project();
        done
    }))
}

fn take(sim: &Arc<Sim>, machine: u32) -> Result<(), Fault> {
    let mut state = sim.lock();
    let home = machine_mut(&mut state, machine)?.datastore;
    let reachable = state.site.datastores[home].accessible;
    let machine = machine_mut(&mut state, machine)?;
    if machine.connection != "connected" {
        let message = format!("The host of {} does not answer.", machine.name);
        return Err(Fault::new("HostNotConnected", message));
    }
    if !reachable {
        let message = format!("The datastore of {} is not accessible.", machine.name);
        return Err(Fault::new("InaccessibleDatastore", message));
    }
    if std::mem::replace(&mut machine.busy, true) {
        let message = "Another task is already in progress.";
        let none = reference("Task", "task-0");
        return Err(Fault::new("TaskInProgress", message).with("task", none));
    }
    Ok(())
}

/// The machine's number that a call on it, or on one of its snapshots, is about.
///
/// # Errors
/// `ManagedObjectNotFound`.
pub fn machine_of(call: &Call) -> Result<u32, Fault> {
    let mut state = call.sim.lock();
    match call.endpoint(&mut state).subject(&call.this) {
        Some(Subject::Machine(id) | Subject::Snapshot(id, _)) => Ok(*id),
        _ => Err(Fault::no_object(&call.this)),
    }
}

/// A machine of the locked state.
///
/// # Errors
/// `ManagedObjectNotFound` when it has gone meanwhile.
pub fn machine_mut(state: &mut State, id: u32) -> Result<&mut Machine, Fault> {
    let gone = || Fault::no_object(&reference("VirtualMachine", format!("vm-{id}")));
    state.site.machines.get_mut(&id).ok_or_else(gone)
}

/// `PowerOnVM_Task` is described as `VirtualMachine.powerOn`.
fn description(ty: &str, method: &str) -> String {
    let bare = method.trim_end_matches("_Task").trim_end_matches("VM");
    let mut letters = bare.chars();
    let first = letters.next().map(|letter| letter.to_lowercase().to_string()).unwrap_or_default();
    format!("{ty}.{first}{}", letters.as_str())
}

fn begin(call: &Call, endpoint: &mut Endpoint, entity: Option<&Ref>) -> Ref {
    let serial = endpoint.model.next_serial();
    let id = match endpoint.kind {
        Kind::VCenter => format!("task-{serial}"),
        Kind::Host(_) => format!("haTask-{}-{}-{serial}", call.this.id, call.method),
    };
    let task = reference("Task", id);
    let name = entity.map(|entity| endpoint.model.get(&entity.id, "name").clone());
    let now = Timestamp::now();
    let reason = object("TaskReasonUser", [("userName", (&call.sim.options.user).into())]);
    let info = object(
        "TaskInfo",
        [
            ("key", (&*task.id).into()),
            ("task", (&task).into()),
            ("name", call.method.into()),
            ("descriptionId", description(call.this.ty, call.method).into()),
            ("entity", entity.cloned().into()),
            ("entityName", name.unwrap_or(Value::Absent)),
            ("state", "running".into()),
            ("cancelled", false.into()),
            ("cancelable", false.into()),
            ("reason", reason),
            ("queueTime", now.into()),
            ("startTime", now.into()),
            ("eventChainId", serial.into()),
        ],
    );
    endpoint.model.add(&task);
    endpoint.model.set(&task, "info", info);
    if let Some(entity) = entity {
        let mut recent = endpoint.model.get(&entity.id, "recentTask").references();
        recent.push(task.clone());
        if recent.len() > limits::RECENT_TASKS_MAX {
            recent.remove(0);
        }
        endpoint.model.set(entity, "recentTask", list(recent));
    }
    endpoint.tasks.push_back(task.clone());
    if endpoint.tasks.len() > limits::TASKS_MAX
        && let Some(oldest) = endpoint.tasks.pop_front()
    {
        endpoint.model.remove(&oldest.id);
    }
    task
}

fn finish(endpoint: &mut Endpoint, task: &Ref, done: Result<Value, Fault>) {
    let Some(info) = endpoint.model.get(&task.id, "info").object() else { return };
    let mut info = Object::clone(info);
    info.set("completeTime", Timestamp::now());
    match done {
        Ok(result) => {
            info.set("state", "success");
            info.set("result", result);
            info.set("progress", Value::Absent);
        }
        Err(fault) => {
            info.set("state", "error");
            info.set("error", fault.localized());
        }
    }
    endpoint.model.set(task, "info", info);
}
