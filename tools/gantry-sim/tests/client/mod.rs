//! A client of the simulator for tests: SOAP calls over TLS, as text, with nothing understood.
//!
//! In: a running simulator. Out: answers' status and text. It is not Gantry's own client, so that
//! the two cannot share a misreading.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_http::{Endpoint, HttpClient, HttpError, Limits, Request, Trust};
use gantry_sim::launch::launch;
use gantry_sim::sim::{Options, Password, Sim};
use gantry_sim::site::inventory;

/// The password of tests' simulators.
pub const PASSWORD: &str = "correct horse";
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A simulator of this inventory, or the built-in one, under `root`.
pub async fn simulator(root: &Path, toml: Option<&str>) -> Arc<Sim> {
    let options = Options {
        password: Password::new(PASSWORD),
        root: root.join("datastores"),
        task_time: Duration::from_millis(1),
        ..Options::default()
    };
    let file = root.join("inventory.toml");
    let file = toml.map(|text| {
        std::fs::write(&file, text).expect("the inventory is written");
        file
    });
    let inventory = inventory::read(file.as_deref()).expect("the inventory");
    launch(options, &inventory, 0).await.expect("a simulator")
}

/// A status and a text.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The text between the first such tags, empty if there are none.
    pub fn of(&self, tag: &str) -> &str {
        let Some(start) = self.text.find(&format!("<{tag}")) else { return "" };
        let rest = &self.text[start..];
        let rest = rest.find('>').map_or("", |end| &rest[end + 1..]);
        rest.split_once(&format!("</{tag}>")).map_or("", |(inner, _)| inner)
    }

    /// The same, of a call that was answered.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text);
        self
    }

    /// Asserts that it is this fault.
    #[track_caller]
    pub fn is_fault(&self, ty: &str) {
        let named = self.text.contains(&format!("xsi:type=\"{ty}\""));
        assert!(self.status == 500 && named, "not {ty} but {}: {}", self.status, self.text);
    }
}

/// A logged-in session of vCenter.
pub struct Client {
    http: HttpClient,
    cookie: Mutex<String>,
    /// The simulator.
    pub sim: Arc<Sim>,
}

impl Client {
    /// Connects to vCenter and logs in.
    pub async fn login(sim: &Arc<Sim>) -> Self {
        let address = sim.vcenter().expect("vCenter listens");
        let thumbprint = sim.lock().endpoints[0].thumbprint_sha256.parse().expect("a thumbprint");
        let endpoint = Endpoint::new("127.0.0.1", address.port()).expect("an endpoint");
        let trust = Trust::Sha256Thumbprint(thumbprint);
        let http = HttpClient::new(endpoint, &trust, Limits::default()).expect("a client");
        let client = Self { http, cookie: Mutex::default(), sim: sim.clone() };
        let body = format!(
            "<userName>administrator@vsphere.local</userName><password>{PASSWORD}</password>"
        );
        client.call("SessionManager", "SessionManager", "Login", &body).await.expect("login").ok();
        client
    }

    /// Calls a method of an object with these parameters.
    pub async fn call(
        &self,
        ty: &str,
        id: &str,
        method: &str,
        parameters: &str,
    ) -> Result<Answer, HttpError> {
        let body = format!(
            "<e:Envelope xmlns:e=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
             xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\"><e:Body><{method} \
             xmlns=\"urn:vim25\"><_this type=\"{ty}\">{id}</_this>{parameters}</{method}>\
             </e:Body></e:Envelope>"
        );
        self.send(Request::post("/sdk", body)).await
    }

    /// Sends any request with the session's cookie.
    pub async fn send(&self, request: Request) -> Result<Answer, HttpError> {
        let cookie = self.cookie.lock().expect("unbroken").clone();
        let request = if cookie.is_empty() {
            request
        } else {
            request.header(gantry_http::header::COOKIE, cookie)
        };
        let response = self.http.send(&request).await?;
        if let Some(cookie) = response.header("set-cookie") {
            let pair = cookie.split(';').next().unwrap_or_default().to_owned();
            *self.cookie.lock().expect("unbroken") = pair;
        }
        let status = response.status().as_u16();
        let body = response.body_bounded(ANSWER_BYTES_MAX).await?;
        Ok(Answer { status, text: String::from_utf8_lossy(&body).into_owned() })
    }

    /// A machine's id on vCenter.
    pub fn machine(&self, name: &str) -> String {
        let state = self.sim.lock();
        let mut entries = state.endpoints[0].model.entries();
        let found = entries.find(|entry| {
            entry.reference.ty == "VirtualMachine" && entry.get("name").text() == Some(name)
        });
        found.unwrap_or_else(|| panic!("no machine {name}")).reference.id.to_string()
    }

    /// Calls a `_Task` method and waits until its task has ended; its state and error's type.
    pub async fn task(&self, ty: &str, id: &str, method: &str, parameters: &str) -> String {
        let answer = self.call(ty, id, method, parameters).await.expect("an answer").ok();
        let task = answer.of("returnval").to_owned();
        loop {
            let ended = {
                let state = self.sim.lock();
                let info = state.endpoints[0].model.get(&task, "info");
                let error = info.at("error.fault").ty();
                match info.at("state").text() {
                    Some("success") => Some("success".to_owned()),
                    Some("error") => Some(error.to_owned()),
                    _ => None,
                }
            };
            if let Some(ended) = ended {
                return ended;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
