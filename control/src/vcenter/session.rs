//! A session with a vCenter or an ESXi: log-in, cookie, repetition, log-out.
//!
//! In: [`Settings`] and calls. Out: each call's answer. Nothing is sent before the first call; that
//! logs in. A session that the server has ended is replaced, once per call and once for all calls
//! that find it out together. State: none → logged in (cookie, key, generation) → none.

use std::sync::Arc;
use std::time::Duration;

use gantry_http::{Endpoint, HttpClient, HttpError, Limits, Request, Trust, header};
use tokio::sync::{Mutex, OnceCell};

use super::error::{ErrorKind, VimError};
use super::moref::MoRef;
use super::retry::{self, Next, Repeat};
use super::service::ServiceContent;
use super::soap;
use super::xml::Element;
use super::xml_writer::XmlWriter;
use crate::limits;
use gantry_common::secret::Secret;

/// Where the service stands on every vCenter and ESXi.
const PATH: &str = "/sdk";

/// Whom to talk to, and as whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The vCenter or ESXi.
    pub endpoint: Endpoint,
    /// Its certificate.
    pub trust: Trust,
    /// User name, such as `backup@vsphere.local`.
    pub user: String,
    /// Password.
    pub password: Secret,
    /// Bounds of the connections.
    pub http: Limits,
}

impl Settings {
    /// Settings with the usual bounds.
    pub fn new(endpoint: Endpoint, trust: Trust, user: &str, password: Secret) -> Settings {
        let http = Limits {
            connections_max: limits::VCENTER_CONNECTIONS_MAX,
            request_timeout: Duration::from_secs(limits::CALL_SECONDS_MAX),
            ..Limits::default()
        };
        Settings { endpoint, trust, user: user.to_owned(), password, http }
    }
}

/// A vCenter or an ESXi; clones share the session.
#[derive(Debug, Clone)]
pub struct VCenter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: HttpClient,
    trust: Trust,
    limits: Limits,
    user: String,
    password: Secret,
    content: OnceCell<ServiceContent>,
    session: Mutex<Option<Session>>,
}

#[derive(Debug, Clone)]
struct Session {
    /// `name=value`, as it is sent back.
    cookie: Secret,
    key: String,
    /// Counts log-ins, so that of many calls that lost the session only one logs in.
    generation: u64,
}

/// One request on its way; its body may hold the password.
#[derive(Clone, Copy)]
struct Sending<'a> {
    method: &'static str,
    object: &'a str,
    body: &'a str,
    api_version: &'a str,
    cookie: Option<&'a Secret>,
    timeout: Option<Duration>,
    idempotent: bool,
}

impl<'a> Sending<'a> {
    /// A request outside a session that may be repeated.
    fn new(
        method: &'static str,
        object: &'a str,
        body: &'a str,
        api_version: &'a str,
    ) -> Sending<'a> {
        let (cookie, timeout, idempotent) = (None, None, true);
        Sending { method, object, body, api_version, cookie, timeout, idempotent }
    }
}

impl VCenter {
    /// A client; connects and logs in with the first call.
    ///
    /// # Errors
    /// When the trusted authority's text is unusable.
    pub fn new(settings: Settings) -> Result<VCenter, VimError> {
        let endpoint = settings.endpoint.clone();
        let http = HttpClient::new(settings.endpoint, &settings.trust, settings.http);
        let http = http.map_err(|error| VimError {
            endpoint: endpoint.to_string(),
            method: "connect",
            object: "settings".into(),
            kind: Box::new(error.into()),
        })?;
        let inner = Inner {
            http,
            trust: settings.trust,
            limits: settings.http,
            user: settings.user,
            password: settings.password,
            content: OnceCell::new(),
            session: Mutex::new(None),
        };
        Ok(VCenter { inner: Arc::new(inner) })
    }

    /// The HTTP client, for what is not SOAP: datastore reads, leases.
    pub fn http(&self) -> &HttpClient {
        &self.inner.http
    }

    /// A client of another server that this endpoint names, such as an ESXi host; trusted as told, else
    /// as this endpoint is.
    ///
    /// # Errors
    /// When the trusted authority's text is unusable.
    pub fn http_of(
        &self,
        endpoint: Endpoint,
        trust: Option<Trust>,
    ) -> Result<HttpClient, HttpError> {
        let trust = trust.as_ref().unwrap_or(&self.inner.trust);
        HttpClient::new(endpoint, trust, self.inner.limits)
    }

    /// The endpoint's singletons; read once.
    ///
    /// # Errors
    /// When the endpoint cannot be reached or is no vSphere.
    pub async fn content(&self) -> Result<&ServiceContent, VimError> {
        self.inner.content.get_or_try_init(|| self.retrieve_content()).await
    }

    async fn retrieve_content(&self) -> Result<ServiceContent, VimError> {
        let method = "RetrieveServiceContent";
        let instance = MoRef::new("ServiceInstance", "ServiceInstance");
        let body = soap::request(method, &instance, |_| {}).unwrap_or_default();
        let mut tries = 0;
        let (answer, _) = loop {
            tries += 1;
            // The oldest version that still has users: what is asked for here has never changed.
            let sent = self.exchange(&Sending::new(method, "service", &body, "5.5")).await;
            match sent {
                Ok(answer) => break answer,
                Err(error) => match next_step(&error, Repeat::Harmless, tries, true) {
                    Next::Pause(pause) => tokio::time::sleep(pause).await,
                    Next::GiveUp | Next::LogIn => return Err(error),
                },
            }
        };
        let element = answer.child("returnval");
        let element = element.ok_or_else(|| self.unexpected(method, "service", "nothing"))?;
        ServiceContent::parse(element).map_err(|what| self.unexpected(method, "service", &what))
    }

    /// Calls a method and gives its response element, whose `returnval` children are the result.
    /// Logs in first when there is no session. `object` is what an error names.
    ///
    /// # Errors
    /// See [`VimError`]. A call that `repeat` says changes something is never repeated once it may
    /// have been done: [`VimError::outcome_is_unknown`].
    pub async fn call(
        &self,
        method: &'static str,
        this: &MoRef,
        object: &str,
        repeat: Repeat,
        arguments: impl FnOnce(&mut XmlWriter),
    ) -> Result<Element, VimError> {
        self.call_waiting(method, this, object, repeat, None, arguments).await
    }

    /// As [`VCenter::call`] for methods that wait at the server: `timeout` replaces the usual one.
    ///
    /// # Errors
    /// As [`VCenter::call`].
    pub async fn call_waiting(
        &self,
        method: &'static str,
        this: &MoRef,
        object: &str,
        repeat: Repeat,
        timeout: Option<Duration>,
        arguments: impl FnOnce(&mut XmlWriter),
    ) -> Result<Element, VimError> {
        let api_version = self.content().await?.api_version.clone();
        let body = soap::request(method, this, arguments);
        let body = body.ok_or_else(|| self.error(method, object, ErrorKind::Argument))?;
        let mut session = self.session(None).await?;
        let (mut tries, mut logged_in_again) = (0, false);
        loop {
            tries += 1;
            let sending = Sending {
                cookie: Some(&session.cookie),
                timeout,
                idempotent: repeat == Repeat::Harmless,
                ..Sending::new(method, object, &body, &api_version)
            };
            let sent = self.exchange(&sending).await;
            let error = match sent {
                Ok((answer, _)) => return Ok(answer),
                Err(error) => error,
            };
            match next_step(&error, repeat, tries, logged_in_again) {
                Next::GiveUp => return Err(error),
                Next::Pause(pause) => {
                    tracing::debug!(%error, tries, ?pause, "a call is repeated");
                    tokio::time::sleep(pause).await;
                }
                Next::LogIn => {
                    tracing::info!(endpoint = %self.inner.http.endpoint(), "the session has ended; logging in again");
                    logged_in_again = true;
                    session = self.session(Some(session.generation)).await?;
                }
            }
        }
    }

    /// Sends a body and unpacks the answer; gives the answer and a cookie that came with it.
    async fn exchange(&self, sending: &Sending<'_>) -> Result<(Element, Option<Secret>), VimError> {
        let Sending { method, object, .. } = *sending;
        let mut request = Request::post(PATH, sending.body.to_owned())
            .header(header::CONTENT_TYPE, "text/xml; charset=utf-8")
            .header(header::HeaderName::from_static("soapaction"), action(sending.api_version))
            .header(header::USER_AGENT, "Gantry")
            .idempotent(sending.idempotent);
        if let Some(cookie) = sending.cookie {
            request = request.header(header::COOKIE, cookie.reveal());
        }
        if let Some(timeout) = sending.timeout {
            request = request.timeout(timeout);
        }
        let wrap = |error: HttpError| self.error(method, object, error.into());
        let response = self.inner.http.send(&request).await.map_err(wrap)?;
        let (status, cookie) = (response.status(), session_cookie(&response));
        let document = response.body_bounded(limits::XML_BYTES_MAX).await.map_err(wrap)?;
        match soap::response(method, &document) {
            Ok(answer) => Ok((answer, cookie)),
            Err(kind @ ErrorKind::Fault(_)) => Err(self.error(method, object, kind)),
            Err(kind) if status.is_success() => Err(self.error(method, object, kind)),
            Err(_) => {
                let text = String::from_utf8_lossy(&document);
                let text = soap::quoted(&text);
                let text = if text.is_empty() { text } else { format!(": {text}") };
                Err(self.error(method, object, ErrorKind::Status(status, text)))
            }
        }
    }

    /// The session; a new one if there is none, or if it is still the one of generation `lost`.
    async fn session(&self, lost: Option<u64>) -> Result<Session, VimError> {
        let mut held = self.inner.session.lock().await;
        match &*held {
            Some(session) if Some(session.generation) != lost => return Ok(session.clone()),
            _ => {}
        }
        let generation = held.as_ref().map_or(0, |session| session.generation) + 1;
        *held = None;
        let session = self.log_in(generation).await?;
        *held = Some(session.clone());
        Ok(session)
    }

    async fn log_in(&self, generation: u64) -> Result<Session, VimError> {
        let (method, object) = ("Login", format!("user '{}'", self.inner.user));
        let content = self.content().await?;
        let body = soap::request(method, &content.session_manager, |w| {
            w.text("userName", &self.inner.user).text("password", self.inner.password.reveal());
        });
        let body = body.ok_or_else(|| self.error(method, &object, ErrorKind::Argument))?;
        let mut tries = 0;
        let (answer, cookie) = loop {
            tries += 1;
            // A second log-in leaves a session behind that ends by itself.
            let sending = Sending::new(method, &object, &body, &content.api_version);
            let sent = self.exchange(&sending).await;
            match sent {
                Ok(answer) => break answer,
                Err(error) => match next_step(&error, Repeat::Harmless, tries, true) {
                    Next::Pause(pause) => tokio::time::sleep(pause).await,
                    Next::GiveUp | Next::LogIn => return Err(error),
                },
            }
        };
        let cookie = cookie.ok_or_else(|| self.unexpected(method, &object, "no session cookie"))?;
        let key = answer.text_at("returnval.key").unwrap_or_default().to_owned();
        Ok(Session { cookie, key, generation })
    }

    /// The session's key, by which others name it; logs in when needed.
    ///
    /// # Errors
    /// When logging in fails.
    pub async fn session_key(&self) -> Result<String, VimError> {
        Ok(self.session(None).await?.key)
    }

    /// The session's cookie (`name=value`), for datastore reads of this very endpoint; logs in when
    /// needed.
    ///
    /// # Errors
    /// When logging in fails.
    pub async fn session_cookie(&self) -> Result<Secret, VimError> {
        Ok(self.session(None).await?.cookie)
    }

    /// Calls something cheap from time to time, so that the session does not end of idleness;
    /// stops when the guard is dropped. Needs a tokio runtime.
    pub fn keep_alive(&self) -> KeepAlive {
        let vcenter = self.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(limits::KEEP_ALIVE_SECONDS));
            ticks.tick().await;
            loop {
                ticks.tick().await;
                if let Err(error) = vcenter.current_time().await {
                    tracing::warn!(%error, "the session could not be kept alive");
                }
            }
        });
        KeepAlive { task: task.abort_handle() }
    }

    /// Logs out if there is a session. What is called later logs in again.
    ///
    /// # Errors
    /// When the endpoint does not answer; the session then ends by itself after its idle time.
    pub async fn log_out(&self) -> Result<(), VimError> {
        let Some(session) = self.inner.session.lock().await.take() else { return Ok(()) };
        let content = self.content().await?;
        let (method, object) = ("Logout", "session");
        let body = soap::request(method, &content.session_manager, |_| {}).unwrap_or_default();
        let sending = Sending {
            cookie: Some(&session.cookie),
            idempotent: false,
            ..Sending::new(method, object, &body, &content.api_version)
        };
        let sent = self.exchange(&sending).await;
        self.inner.http.close_idle();
        match sent {
            Err(error) if matches!(*error.kind, ErrorKind::Fault(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    pub(super) fn error(&self, method: &'static str, object: &str, kind: ErrorKind) -> VimError {
        let endpoint = self.inner.http.endpoint().to_string();
        VimError { endpoint, method, object: object.to_owned(), kind: Box::new(kind) }
    }

    pub(crate) fn unexpected(&self, method: &'static str, object: &str, what: &str) -> VimError {
        self.error(method, object, ErrorKind::Unexpected(what.to_owned()))
    }
}

/// Keeps a session alive until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the keeping"]
pub struct KeepAlive {
    task: tokio::task::AbortHandle,
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn next_step(error: &VimError, repeat: Repeat, tries: u32, logged_in_again: bool) -> Next {
    retry::decide(error, repeat, tries, logged_in_again, fastrand::f64())
}

/// The version that the server itself speaks is one that it accepts.
fn action(api_version: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let version =
        if api_version.is_empty() || !api_version.chars().all(fits) { "5.5" } else { api_version };
    format!("\"urn:vim25/{version}\"")
}

/// `name=value` of the session cookie that a response sets.
fn session_cookie(response: &gantry_http::Response) -> Option<Secret> {
    let all = response.headers().get_all(header::SET_COOKIE);
    let mut texts = all.iter().filter_map(|value| value.to_str().ok());
    texts.find_map(|text| {
        let pair = text.split(';').next()?.trim();
        let value = pair.strip_prefix("vmware_soap_session=")?;
        (!value.is_empty()).then(|| Secret::new(pair))
    })
}

#[cfg(test)]
mod tests {
    use super::action;

    #[test]
    fn a_strange_version_is_not_sent_back() {
        assert_eq!(action("8.0.2.0"), "\"urn:vim25/8.0.2.0\"");
        assert_eq!(action("8\r\nX: y"), "\"urn:vim25/5.5\"");
        assert_eq!(action(""), "\"urn:vim25/5.5\"");
    }
}
