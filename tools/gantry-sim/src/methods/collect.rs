//! PropertyCollector: retrieving, filters, waiting for updates.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Call;
use crate::collector::filter::Look;
use crate::collector::{Collector, Filter, Selection};
use crate::fault::Fault;
use crate::limits;
use crate::schema::{Object, Ref, Value, list, reference, schema};
use crate::session::{Retrieval, Session};
use crate::sim::{Endpoint, State};
use crate::soap::Request;

/// Whether a request reads nothing but the service instance, which needs no session.
pub(super) fn is_about_service(request: &Request) -> bool {
    let retrieve = matches!(&*request.method, "RetrieveProperties" | "RetrievePropertiesEx");
    let specs = request.parameters.children.iter().filter(|child| child.name == "specSet");
    let mut sets = specs.flat_map(|spec| &spec.children).filter(|c| c.name == "objectSet");
    retrieve
        && sets.all(|set| {
            let service = |obj: &crate::xml::Element| obj.text.trim() == "ServiceInstance";
            set.child("obj").is_some_and(service) && set.child("selectSet").is_none()
        })
}

/// One property of one object.
pub(super) fn fetch(call: &Call, name: &str) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let endpoint = call.endpoint(&mut state);
    let ty = schema().managed(call.this.ty);
    if ty.is_none_or(|ty| ty.property(name).is_none()) {
        let message = format!("The property {name} of {} is invalid.", call.this.ty);
        return Err(Fault::new("InvalidProperty", message).with("name", name));
    }
    show_momentary(call, endpoint, &call.this.clone());
    Ok(endpoint.model.get(&call.this.id, name).clone())
}

/// Properties that depend on who asks and when.
fn show_momentary(call: &Call, endpoint: &mut Endpoint, about: &Ref) {
    if about.ty == "ServiceInstance" {
        endpoint.model.set(about, "serverClock", jiff::Timestamp::now());
    }
    if about.ty == "SessionManager" {
        let all: Vec<Value> = endpoint.sessions.iter().map(Session::describe).collect();
        let own = call.origin.cookie.as_ref().and_then(|cookie| endpoint.sessions.get(cookie));
        let own = own.map(|session| session.describe());
        endpoint.model.set(about, "sessionList", list(all));
        endpoint.model.set(about, "currentSession", own);
    }
}

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    match call.method {
        "RetrieveProperties" => Ok(list(retrieve(call)?)),
        "RetrievePropertiesEx" => {
            let (page_objects, rest) = (page_objects(call)?, retrieve(call)?.into());
            page(call, Retrieval { page_objects, rest })
        }
        "ContinueRetrievePropertiesEx" => {
            let rest = take_retrieval(call)?;
            page(call, rest)
        }
        "CancelRetrievePropertiesEx" => take_retrieval(call).map(|_| Value::Absent),
        "CreateFilter" => create_filter(call),
        "DestroyPropertyFilter" => destroy_filter(call),
        "CreatePropertyCollector" => create_collector(call),
        "DestroyPropertyCollector" => destroy_collector(call),
        _ => cancel_wait(call),
    }
}

fn retrieve(call: &Call) -> Result<Vec<Value>, Fault> {
    let mut state = call.sim.lock();
    let endpoint = call.endpoint(&mut state);
    let mut contents = Vec::new();
    for spec in call.arguments.get("specSet").items() {
        for start in spec.at("objectSet").items() {
            if let Some(about) = start.at("obj").reference() {
                show_momentary(call, endpoint, about);
            }
        }
        let selection = Selection::compile(spec)?;
        for found in selection.objects(&endpoint.model)? {
            if let Some(entry) = endpoint.model.entry(&found.id) {
                contents.push(selection.content(entry));
            }
        }
    }
    Ok(contents)
}

/// How many objects the client wants in a page, at most what the simulator gives.
fn page_objects(call: &Call) -> Result<usize, Fault> {
    let limit = call.sim.options.page_objects;
    let Some(asked) = call.arguments.get("options").at("maxObjects").number() else {
        return Ok(limit);
    };
    let asked = usize::try_from(asked).ok().filter(|asked| *asked > 0);
    Ok(asked.ok_or_else(|| Fault::invalid_argument("options.maxObjects"))?.min(limit))
}

/// One page, and a token for what is left.
fn page(call: &Call, mut retrieval: Retrieval) -> Result<Value, Fault> {
    let count = retrieval.page_objects.min(retrieval.rest.len());
    if count == 0 {
        return Ok(Value::Absent);
    }
    let objects: Vec<Value> = retrieval.rest.drain(..count).collect();
    let mut result = Object::new("RetrieveResult");
    result.set("objects", list(objects));
    if !retrieval.rest.is_empty() {
        let mut state = call.sim.lock();
        let session = session(call, &mut state)?;
        if session.retrievals.len() >= limits::RETRIEVALS_MAX {
            return Err(Fault::new("LimitExceeded", "Too many retrievals are open."));
        }
        let token = crate::session::secret(8);
        result.set("token", &token);
        session.retrievals.insert(token, retrieval);
    }
    Ok(result.into())
}

fn take_retrieval(call: &Call) -> Result<Retrieval, Fault> {
    let mut state = call.sim.lock();
    let taken = session(call, &mut state)?.retrievals.remove(call.arguments.text("token"));
    taken.ok_or_else(|| Fault::invalid_argument("token"))
}

fn session<'a>(call: &Call, state: &'a mut State) -> Result<&'a mut Session, Fault> {
    let cookie = call.cookie()?;
    let found = call.endpoint(state).sessions.get(cookie);
    found.ok_or_else(|| Fault::not_authenticated(&call.this))
}

/// The collector that the call is about; the default one comes into being here.
fn collector<'a>(session: &'a mut Session, this: &Ref) -> &'a mut Collector {
    session.collectors.entry(this.id.clone()).or_default()
}

/// A reference below a session, in vCenter's form.
fn own_reference(session: &Session, ty: &str) -> Ref {
    reference(ty, format!("session[{}]{}", session.key, crate::site::random_uuid()))
}

fn create_filter(call: &Call) -> Result<Value, Fault> {
    let selection = Selection::compile(call.arguments.get("spec"))?;
    let mut state = call.sim.lock();
    selection.objects(&call.endpoint(&mut state).model)?;
    let session = session(call, &mut state)?;
    let made = own_reference(session, "PropertyFilter");
    let collector = collector(session, &call.this);
    if collector.filters.len() >= limits::FILTERS_MAX {
        return Err(Fault::new("LimitExceeded", "Too many filters."));
    }
    let partial = call.arguments.bool("partialUpdates");
    let filter = Filter::new(made.clone(), selection, partial);
    collector.filters.insert(made.id.clone(), filter);
    let model = &mut call.endpoint(&mut state).model;
    model.add(&made);
    model.set(&made, "spec", call.arguments.get("spec").clone());
    model.set(&made, "partialUpdates", partial);
    model.publish();
    Ok(made.into())
}

fn destroy_filter(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    for collector in session(call, &mut state)?.collectors.values_mut() {
        collector.filters.remove(&call.this.id);
    }
    call.endpoint(&mut state).model.remove(&call.this.id);
    Ok(Value::Absent)
}

fn create_collector(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let session = session(call, &mut state)?;
    if session.collectors.len() >= limits::COLLECTORS_MAX {
        return Err(Fault::new("LimitExceeded", "Too many property collectors."));
    }
    let made = own_reference(session, "PropertyCollector");
    session.collectors.insert(made.id.clone(), Collector::default());
    call.endpoint(&mut state).model.add(&made);
    Ok(made.into())
}

fn destroy_collector(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let Some(gone) = session(call, &mut state)?.collectors.remove(&call.this.id) else {
        return Err(Fault::not_supported("The default property collector stays."));
    };
    let model = &mut call.endpoint(&mut state).model;
    for filter in gone.filters.keys() {
        model.remove(filter);
    }
    model.remove(&call.this.id);
    model.publish();
    Ok(Value::Absent)
}

fn cancel_wait(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    collector(session(call, &mut state)?, &call.this).cancelled += 1;
    call.endpoint(&mut state).model.publish();
    Ok(Value::Absent)
}

/// What one look at the collector needs to be repeated.
struct Wait {
    version: String,
    objects_max: usize,
    deadline: Option<Instant>,
    cancelled: u64,
}

impl Wait {
    fn begin(call: &Call) -> Result<Self, Fault> {
        let options = call.arguments.get("options");
        let seconds = match call.method {
            "CheckForUpdates" => Some(0),
            "WaitForUpdates" => None,
            _ => options.at("maxWaitSeconds").number(),
        };
        let seconds = match seconds {
            Some(seconds) => {
                let seconds = u64::try_from(seconds);
                Some(seconds.map_err(|_| Fault::invalid_argument("options.maxWaitSeconds"))?)
            }
            None => None,
        };
        let limit = call.sim.options.update_objects;
        let asked = options.at("maxObjectUpdates").number().and_then(|n| usize::try_from(n).ok());
        // Only the newer method can say that there is more.
        let old = call.method != "WaitForUpdatesEx";
        let objects_max = if old { usize::MAX } else { asked.unwrap_or(limit).clamp(1, limit) };
        let mut state = call.sim.lock();
        let cancelled = collector(session(call, &mut state)?, &call.this).cancelled;
        Ok(Self {
            version: call.arguments.text("version").to_owned(),
            objects_max,
            deadline: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
            cancelled,
        })
    }

    fn look(&self, call: &Call, first: bool) -> Result<(Look, watch::Receiver<u64>), Fault> {
        let mut state = call.sim.lock();
        let endpoint = call.endpoint(&mut state);
        let cookie: &Arc<str> = call.cookie()?;
        let changed = endpoint.model.watch();
        let Endpoint { model, sessions, .. } = endpoint;
        let session = sessions.get(cookie).ok_or_else(|| Fault::not_authenticated(&call.this))?;
        let collector = collector(session, &call.this);
        if collector.cancelled != self.cancelled {
            let message = "The request was canceled by a user.";
            return Err(Fault::new("RequestCanceled", message));
        }
        // An empty version starts over once; while waiting it must not start over again.
        let version = if first { self.version.clone() } else { collector.version_text() };
        let look = collector.look(&version, model, self.objects_max)?;
        sessions.touch(cookie);
        Ok((look, changed))
    }
}

/// `WaitForUpdates`, `WaitForUpdatesEx`, `CheckForUpdates`.
pub(super) async fn wait(call: &Call) -> Result<Value, Fault> {
    let wait = Wait::begin(call)?;
    let mut first = true;
    loop {
        let (look, mut changed) = wait.look(call, first)?;
        first = false;
        if let Look::Updates(updates) = look {
            return Ok(updates);
        }
        let step = Instant::now() + Duration::from_secs(limits::WAIT_STEP_SECONDS);
        if wait.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(Value::Absent);
        }
        let until = wait.deadline.map_or(step, |deadline| deadline.min(step));
        tokio::select! {
            _ = changed.changed() => {}
            () = sleep_until(until) => {}
        }
    }
}
