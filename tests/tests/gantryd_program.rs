//! The program gantryd as a process, over nothing but its REST API: configured, movers enrolled, a job
//! run, points listed; stopped and started again; killed with -9 at every state of a session; no
//! secret anywhere where it does not belong.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_common::enrolment::{EnrolmentToken, MoverRole};
use gantry_common::ids::PeerId;
use gantry_http::{Endpoint, HttpClient, Request, Trust};
use gantry_tests::gantryd::runtime;
use gantry_tests::program::{Running, mover};
use gantry_tests::vsphere::{PASSWORD, Sphere, machines};
use gantry_transport::Identity;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(120);

fn gantryd() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gantryd-under-test"))
}

/// gantryd, as a child.
struct Daemon {
    child: Child,
    api: String,
    control: String,
}

impl Daemon {
    /// With the ports of an earlier life, or free ones.
    fn start(sphere: &Sphere, ports: Option<(&str, &str)>) -> Daemon {
        let (api, control) = ports.unwrap_or(("127.0.0.1:0", "127.0.0.1:0"));
        let config = sphere.scratch.join("gantryd.toml");
        let state = sphere.scratch.join("gantryd");
        let text = format!(
            "state = {state:?}\nnames = [\"127.0.0.1\"]\n[api]\naddress = \"{api}\"\n[control]\naddress = \"{control}\"\n"
        );
        std::fs::write(&config, text).expect("written");
        let log = std::fs::OpenOptions::new().create(true).append(true);
        let log = log.open(sphere.scratch.join("gantryd.log")).expect("a log");
        let mut command = Command::new(gantryd());
        command.args(["serve", "--json-ready", "--config"]).arg(&config);
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("gantryd starts");
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().expect("its output"));
        out.read_line(&mut line).expect("a line");
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(sphere.scratch.join("gantryd.log"));
            panic!("gantryd is not ready: {error}: {line}\n{}", log.unwrap_or_default())
        });
        let text = |field: &str| ready["ready"][field].as_str().expect("an address").to_owned();
        Daemon { child, api: text("api"), control: text("control") }
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// Asks it to end, as systemd does; its exit code.
    fn stop(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().expect("kill runs");
        self.child.wait().expect("waited for").code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the API.
struct Client {
    http: HttpClient,
    token: String,
}

impl Client {
    fn new(sphere: &Sphere, daemon: &Daemon) -> Client {
        let state = sphere.scratch.join("gantryd");
        let ca = std::fs::read(state.join("ca.pem")).expect("the certificate");
        let (host, port) = daemon.api.rsplit_once(':').expect("an address");
        let endpoint = Endpoint::new(host, port.parse().expect("a port"));
        let http = HttpClient::new(endpoint, Trust::CaPem(ca)).expect("a client");
        let token = std::fs::read_to_string(state.join("admin.token")).expect("the first token");
        Client { http, token: token.trim().to_owned() }
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::new(method, &format!("/api/v1/{path}"))
            .header("authorization", &format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(body);
        let response = self.http.send(request).await.expect("an answer");
        let value = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
        (response.status, value)
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.call("POST", path, Some(body)).await;
        assert!((200..300).contains(&status), "{path}: {status} {value}");
        value
    }
}
