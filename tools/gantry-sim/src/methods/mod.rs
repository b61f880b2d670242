//! The methods: from a decoded request to a value or a fault.
//!
//! In: a [`Call`]. Out: what the method returns. One file a group of managed objects; this one
//! checks what is common: the session, the object, the method's parameters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::drill::TaskVerdict;
use crate::events;
use crate::fault::Fault;
use crate::limits;
use crate::requests::Seen;
use crate::schema::{FieldType, Method, Ref, Value, decode, schema};
use crate::sim::{Endpoint, Sim, State};
use crate::soap::{self, Request};

mod session;
mod collect;
mod views;
mod search;
mod create;
mod register;
mod power;
mod reconfigure;
mod snapshots;
mod lease;
mod files;
mod guest;
mod managers;

pub use session::{expire, forget};

/// A method's parameters that are set.
#[derive(Debug, Clone, Default)]
pub struct Arguments(BTreeMap<&'static str, Value>);

impl Arguments {
    /// A parameter; [`Value::Absent`] when it is unset.
    #[must_use]
    pub fn get(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&Value::Absent)
    }

    /// A text parameter, empty when unset.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.get(name).text().unwrap_or_default()
    }

    /// A truth, false when unset.
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        self.get(name).bool().unwrap_or(false)
    }
}

/// Where a request came from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The endpoint's number.
    pub endpoint: usize,
    /// The client's address.
    pub peer: SocketAddr,
    /// What the client calls itself.
    pub agent: String,
    /// The cookie it sent.
    pub cookie: Option<Arc<str>>,
    /// What a drill does to the task that it starts.
    pub task: TaskVerdict,
    /// The request among all that came; absent where nobody watches.
    pub seen: Option<Seen>,
}

/// One call of a method.
#[derive(Debug)]
pub struct Call {
    /// The simulator.
    pub sim: Arc<Sim>,
    /// Where it came from. The cookie is one of a living session, or absent.
    pub origin: Origin,
    /// The object, with the type that it really has.
    pub this: Ref,
    /// The method's name.
    pub method: &'static str,
    /// Its parameters.
    pub arguments: Arguments,
}

/// What a method gives.
#[derive(Debug)]
pub struct Reply {
    /// What it returns.
    pub value: Value,
    /// A new session's cookie.
    pub cookie: Option<Arc<str>>,
    /// The type that it is declared to return.
    pub returns: Option<FieldType>,
}

impl Call {
    /// The caller's cookie.
    ///
    /// # Errors
    /// `NotAuthenticated`.
    pub fn cookie(&self) -> Result<&Arc<str>, Fault> {
        self.origin.cookie.as_ref().ok_or_else(|| Fault::not_authenticated(&self.this))
    }

    /// The endpoint in the locked state.
    #[must_use]
    pub fn endpoint<'a>(&self, state: &'a mut State) -> &'a mut Endpoint {
        &mut state.endpoints[self.origin.endpoint]
    }
}

/// Not in any schema, but sent by pyVmomi for every property.
const FETCH: &str = "Fetch";

/// Which methods need no session.
const ANONYMOUS: &[&str] = &["RetrieveServiceContent", "Login"];

/// The name of a request's method as the table has it.
#[must_use]
pub fn known_name(request: &Request) -> &'static str {
    if request.method == FETCH {
        return FETCH;
    }
    let ty = schema().managed(request.this.ty);
    ty.and_then(|ty| ty.method(&request.method)).map_or("unknown", |method| method.name)
}

/// Answers a request.
///
/// # Errors
/// The fault to send.
pub async fn invoke(sim: Arc<Sim>, mut origin: Origin, request: Request) -> Result<Reply, Fault> {
    let this = {
        let mut state = sim.lock();
        session::expire(&mut state, &sim.options);
        let endpoint = &mut state.endpoints[origin.endpoint];
        let alive = origin.cookie.take().filter(|c| endpoint.sessions.get(c).is_some());
        if let Some(cookie) = &alive {
            endpoint.sessions.touch(cookie);
        }
        origin.cookie = alive;
        let found = endpoint.model.entry(&request.this.id).map(|entry| entry.reference.clone());
        let on_service = request.this.ty == "ServiceInstance";
        let anonymous = ANONYMOUS.contains(&request.method.as_str())
            || (on_service && request.method == FETCH)
            || collect::is_about_service(&request);
        if origin.cookie.is_none() && !anonymous {
            return Err(Fault::not_authenticated(&request.this));
        }
        found.ok_or_else(|| Fault::no_object(&request.this))?
    };
    let ty = schema().managed(this.ty).ok_or_else(|| Fault::no_object(&this))?;
    if request.method == FETCH {
        let prop = request.parameters.child("prop").map(|prop| prop.text.clone());
        let prop = prop.ok_or_else(|| Fault::invalid_argument("prop"))?;
        let call = Call { sim, origin, this, method: FETCH, arguments: Arguments::default() };
        let value = collect::fetch(&call, &prop)?;
        return Ok(Reply { value, cookie: None, returns: Some(soap::FETCHED) });
    }
    let Some(method) = ty.method(&request.method) else {
        let message = format!("The method {} is not implemented by the simulator.", request.method);
        let fault = Fault::new("MethodNotFound", message).with("receiver", &this);
        return Err(fault.with(
            "method",
            request.method.chars().take(limits::NAME_BYTES_MAX).collect::<String>(),
        ));
    };
    let arguments = arguments(method, &request)?;
    let call = Call { sim, origin, this, method: method.name, arguments };
    let mut reply = dispatch(call).await?;
    reply.returns = method.returns;
    Ok(reply)
}

fn arguments(method: &'static Method, request: &Request) -> Result<Arguments, Fault> {
    let mut arguments = Arguments::default();
    let put = |field: &crate::schema::Field, value| {
        arguments.0.insert(field.name, value);
    };
    decode::fields(&request.parameters, &method.parameters, put).map_err(Fault::invalid_request)?;
    Ok(arguments)
}

async fn dispatch(call: Call) -> Result<Reply, Fault> {
    let value = match call.method {
        "Login" => {
            let (value, cookie) = session::login(&call)?;
            let user = &call.sim.options.user;
            let message = format!("User {user} logged in");
            let (state, at) = (&mut call.sim.lock(), call.origin.endpoint);
            events::note(state, at, user, "UserLoginSessionEvent", None, message);
            return Ok(Reply { value, cookie: Some(cookie), returns: None });
        }
        "WaitForUpdates" | "WaitForUpdatesEx" | "CheckForUpdates" => collect::wait(&call).await?,
        _ => {
            // Large inventories and the disk engine take their time: not on the network's threads.
            let done = tokio::task::spawn_blocking(move || immediate(&call)).await;
            done.unwrap_or_else(|_| Err(Fault::system_error()))?
        }
    };
    Ok(Reply { value, cookie: None, returns: None })
}

fn immediate(call: &Call) -> Result<Value, Fault> {
    match call.method {
        "RetrieveServiceContent" => collect::fetch(call, "content"),
        "CurrentTime" => Ok(jiff::Timestamp::now().into()),
        "Logout" | "SessionIsActive" | "TerminateSession" | "AcquireGenericServiceTicket" => {
            session::invoke(call)
        }
        "RetrieveProperties"
        | "RetrievePropertiesEx"
        | "ContinueRetrievePropertiesEx"
        | "CancelRetrievePropertiesEx"
        | "CreateFilter"
        | "DestroyPropertyFilter"
        | "CancelWaitForUpdates"
        | "CreatePropertyCollector"
        | "DestroyPropertyCollector" => collect::invoke(call),
        "CreateContainerView"
        | "CreateListView"
        | "DestroyView"
        | "ModifyListView"
        | "ResetListView" => views::invoke(call),
        "FindByUuid"
        | "FindAllByUuid"
        | "FindByInventoryPath"
        | "FindByDnsName"
        | "FindByIp"
        | "FindChild"
        | "FindByDatastorePath" => search::invoke(call),
        _ => change(call),
    }
}

/// The methods that change machines and datastores.
fn change(call: &Call) -> Result<Value, Fault> {
    match call.method {
        "ReconfigVM_Task" => reconfigure::invoke(call),
        "PowerOnVM_Task"
        | "PowerOffVM_Task"
        | "SuspendVM_Task"
        | "MarkAsTemplate"
        | "MarkAsVirtualMachine"
        | "UnregisterVM"
        | "Destroy_Task" => power::invoke(call),
        "QueryChangedDiskAreas" => snapshots::changed_areas(call),
        "CreateSnapshot_Task"
        | "CreateSnapshotEx_Task"
        | "RemoveSnapshot_Task"
        | "RemoveAllSnapshots_Task"
        | "RevertToSnapshot_Task"
        | "RevertToCurrentSnapshot_Task"
        | "ConsolidateVMDisks_Task"
        | "RenameSnapshot" => snapshots::invoke(call),
        "CreateFolder" | "CreateVM_Task" | "Rename_Task" => create::invoke(call),
        "RegisterVM_Task" => register::register(call),
        "ExportVm"
        | "ExportSnapshot"
        | "HttpNfcLeaseProgress"
        | "HttpNfcLeaseComplete"
        | "HttpNfcLeaseAbort"
        | "HttpNfcLeaseGetManifest" => lease::invoke(call),
        "ValidateCredentialsInGuest"
        | "InitiateFileTransferToGuest"
        | "InitiateFileTransferFromGuest"
        | "CreateTemporaryFileInGuest"
        | "CreateTemporaryDirectoryInGuest"
        | "MakeDirectoryInGuest"
        | "DeleteFileInGuest"
        | "DeleteDirectoryInGuest"
        | "ListFilesInGuest"
        | "StartProgramInGuest"
        | "ListProcessesInGuest"
        | "TerminateProcessInGuest" => guest::invoke(call),
        "MakeDirectory"
        | "CreateVirtualDisk_Task"
        | "DeleteVirtualDisk_Task"
        | "DeleteDatastoreFile_Task"
        | "QueryVirtualDiskUuid" => files::invoke(call),
        "QueryEvents"
        | "AddCustomFieldDef"
        | "RemoveCustomFieldDef"
        | "SetField"
        | "setCustomValue"
        | "HasPrivilegeOnEntities"
        | "HasUserPrivilegeOnEntities"
        | "HasPrivilegeOnEntity"
        | "QueryOptions"
        | "FindExtension" => managers::invoke(call),
        other => Err(Fault::not_supported(format!("The simulator does not do {other}."))),
    }
}
