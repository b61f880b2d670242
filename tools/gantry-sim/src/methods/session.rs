//! SessionManager: logging in and out, tickets, expiry.

use std::sync::Arc;

use super::Call;
use crate::fault::Fault;
use crate::schema::{Value, object};
use crate::session::Session;
use crate::sim::{Endpoint, Options, State};

/// `Login`: the session, and its cookie.
pub(super) fn login(call: &Call) -> Result<(Value, Arc<str>), Fault> {
    let options = &call.sim.options;
    let right = call.arguments.text("userName") == options.user
        && options.password.is(call.arguments.text("password"));
    if !right {
        let message = "Cannot complete login due to an incorrect user name or password.";
        return Err(Fault::new("InvalidLogin", message));
    }
    let mut state = call.sim.lock();
    let endpoint = call.endpoint(&mut state);
    let opened = endpoint.sessions.open(&options.user, call.origin.peer, &call.origin.agent);
    let cookie = opened.ok_or_else(|| {
        Fault::new("LimitExceeded", "The maximum number of sessions has been exceeded.")
    })?;
    let session = endpoint.sessions.get(&cookie).map(|session| session.describe());
    Ok((session.into(), cookie))
}

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    let mut state = call.sim.lock();
    let endpoint = call.endpoint(&mut state);
    match call.method {
        "Logout" => {
            let closed = endpoint.sessions.close(call.cookie()?);
            forget(endpoint, closed);
            Ok(Value::Absent)
        }
        "TerminateSession" => {
            for key in call.arguments.get("sessionId").items() {
                let closed = endpoint.sessions.close_key(key.text().unwrap_or_default());
                if closed.is_none() {
                    return Err(Fault::new("NotFound", "There is no such session."));
                }
                forget(endpoint, closed);
            }
            Ok(Value::Absent)
        }
        "SessionIsActive" => {
            let key = call.arguments.text("sessionID");
            let user = call.arguments.text("userName");
            let found = endpoint.sessions.iter().any(|s| *s.key == *key && s.user == user);
            Ok(found.into())
        }
        _ => ticket(call, endpoint),
    }
}

/// A ticket for one HTTP request instead of a session's cookie.
fn ticket(call: &Call, endpoint: &mut Endpoint) -> Result<Value, Fault> {
    let spec = call.arguments.get("spec");
    let url = spec.at("url").text().ok_or_else(|| Fault::invalid_argument("spec.url"))?;
    let method = spec.at("method").text().unwrap_or("httpGet");
    let id = endpoint.tickets.issue(method, url);
    let host = endpoint.address.map(|address| address.ip().to_string());
    Ok(object(
        "SessionManagerGenericServiceTicket",
        [
            ("id", id.into()),
            ("hostName", host.into()),
            ("sslThumbprint", endpoint.thumbprint.as_str().into()),
        ],
    ))
}

/// Ends sessions that were idle for too long.
pub fn expire(state: &mut State, options: &Options) {
    for endpoint in &mut state.endpoints {
        for session in endpoint.sessions.expire(options.session_idle) {
            forget(endpoint, Some(session));
        }
    }
}

/// Takes what a closed session had out of the model and wakes its waits.
pub fn forget(endpoint: &mut Endpoint, closed: Option<Session>) {
    let Some(session) = closed else { return };
    for view in &session.views {
        endpoint.model.remove(&view.id);
    }
    let default = crate::service::manager(endpoint.kind, "propertyCollector");
    for (id, collector) in &session.collectors {
        for filter in collector.filters.keys() {
            endpoint.model.remove(filter);
        }
        if default.as_ref().is_none_or(|default| default.id != *id) {
            endpoint.model.remove(id);
        }
    }
    endpoint.model.publish();
}
