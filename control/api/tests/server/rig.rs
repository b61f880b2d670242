//! A router over a backend in memory, with a token of every role; and the same behind TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use gantry_api::access::{token_digest, token_text};
use gantry_api::memory::Memory;
use gantry_api::model::{Id, Role};
use gantry_api::server::{Bounds, serve, tls_config};
use gantry_api::{Api, ApiSettings};
use gantry_common::secret::Secret;
use gantry_http::{HttpClient, Limits, Trust};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt as _;

/// The API, and what tests need of it.
pub(crate) struct Rig {
    pub(crate) memory: Arc<Memory>,
    pub(crate) router: Router,
    pub(crate) stop: watch::Sender<bool>,
}

/// The text of a role's token.
pub(crate) fn token(role: Role) -> Secret {
    token_text([role as u8; 32])
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let memory = Arc::new(Memory::default());
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            memory.add_token(&format!("{role:?}"), role, token_digest(token(role).reveal()));
        }
        let (stop, stopped) = watch::channel(false);
        let settings =
            ApiSettings { stream_poll: Duration::from_millis(20), ..ApiSettings::default() };
        let router = Api::new(memory.clone(), settings, stopped).router();
        Rig { memory, router, stop }
    }

    /// Sends a request; the answer's status, and its JSON (null if it is none).
    pub(crate) async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.router.clone().oneshot(request).await.expect("never fails");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// As an administrator.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(request(method, path, Some(Role::Admin), body.to_string())).await
    }

    /// Makes a vCenter, a repository and a job; the job's id.
    pub(crate) async fn job(&self) -> Id {
        let vcenter = self.made("/api/v1/vcenters", vcenter("one")).await;
        let repository = self.made("/api/v1/repositories", repository()).await;
        let job = json!({"name": "nightly", "vcenter": vcenter, "repository": repository,
            "selection": {"patterns": ["*"]}});
        self.made("/api/v1/jobs", job).await
    }

    pub(crate) async fn made(&self, path: &str, body: Value) -> Id {
        let (status, made) = self.ask(Method::POST, path, body).await;
        assert_eq!(status, StatusCode::CREATED, "{path}: {made}");
        made["id"].as_str().expect("an id").parse().expect("an id")
    }

    /// Starts a job; its session.
    pub(crate) async fn start(&self, job: Id) -> Id {
        let path = format!("/api/v1/jobs/{job}/start");
        let (status, session) = self.ask(Method::POST, &path, json!({})).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{session}");
        session["id"].as_str().expect("an id").parse().expect("an id")
    }
}

pub(crate) fn vcenter(name: &str) -> Value {
    json!({"name": name, "url": "https://vcenter.example", "user": "backup",
        "trust": {"thumbprint": "ab".repeat(32)}, "password": "vcenter-hush"})
}

pub(crate) fn repository() -> Value {
    json!({"name": "store", "mover": "cd".repeat(32), "address": "gantry://127.0.0.1:7420",
        "repository_id": "ef".repeat(16)})
}

/// A request with a role's token.
pub(crate) fn request(
    method: Method,
    path: &str,
    role: Option<Role>,
    body: impl Into<Body>,
) -> Request<Body> {
    let mut request =
        Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(role) = role {
        let bearer = format!("Bearer {}", token(role).reveal());
        request = request.header(header::AUTHORIZATION, bearer);
    }
    request.body(body.into()).expect("a request")
}

/// The API behind TLS.
pub(crate) struct Served {
    pub(crate) rig: Rig,
    pub(crate) address: SocketAddr,
    pub(crate) ca: String,
    pub(crate) running: tokio::task::JoinHandle<()>,
}

impl Served {
    pub(crate) async fn new(bounds: Bounds) -> Served {
        let rig = Rig::new();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("made");
        let ca = made.cert.pem();
        let key = Secret::new(made.signing_key.serialize_pem());
        let tls = tls_config(ca.as_bytes(), &key).expect("usable");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let running = serve(listener, tls, rig.router.clone(), bounds, rig.stop.subscribe());
        Served { rig, address, ca, running: tokio::spawn(running) }
    }

    pub(crate) fn client(&self) -> HttpClient {
        let endpoint = self.address.to_string().parse().expect("an endpoint");
        let trust = Trust::CaPem(self.ca.clone().into_bytes());
        HttpClient::new(endpoint, &trust, Limits::default()).expect("a client")
    }
}
