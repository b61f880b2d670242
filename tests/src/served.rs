//! gantryd as a process, and everything about it over its REST API.
//!
//! In: a simulated vSphere. Out: a [`Served`]: gantryd, a repository's mover and two proxies' as
//! processes of their own, a job. They end with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_common::enrolment::EnrolmentToken;
use gantry_common::secret::Secret;
use gantry_control::client::{Client, Login};
use gantry_transport::Identity;
use serde_json::{Value, json};

use crate::program::{Running, daemon, mover};
use crate::vsphere::{PASSWORD, Sphere};

/// How long anything here may take on a busy machine.
pub const WITHIN: Duration = Duration::from_secs(150);

/// gantryd as a process.
pub struct Daemon {
    /// Its process.
    pub process: Running,
    /// Its API's address.
    pub api: String,
    /// Where movers find it.
    pub control: String,
}

impl Daemon {
    /// Starts it; with the addresses of an earlier life its movers and clients find it again.
    pub fn start(folder: &Path, addresses: Option<(&str, &str)>) -> Daemon {
        let (api, control) = addresses.unwrap_or(("127.0.0.1:0", "127.0.0.1:0"));
        let text = format!(
            "state = {:?}\nnames = [\"127.0.0.1\"]\n[api]\naddress = {api:?}\n[control]\naddress = {control:?}\n",
            folder.join("gantryd")
        );
        let config = folder.join("gantryd.toml");
        std::fs::write(&config, text).expect("written");
        let mut command = Command::new(daemon());
        command.args(["serve", "--json-ready", "--config"]).arg(&config);
        let mut process = Running::start(folder, &mut command);
        let line = process.wait_for_line("{\"ready\":");
        let ready: Value = serde_json::from_str(line.trim_end_matches('}')).unwrap_or_else(|_| {
            let whole = format!("{{\"ready\":{line}");
            serde_json::from_str::<Value>(&whole).expect("JSON")["ready"].clone()
        });
        let text = |field: &str| ready[field].as_str().expect("an address").to_owned();
        Daemon { api: text("api"), control: text("control"), process }
    }
}

/// A vCenter, as gantryd is told of it.
pub struct Reached {
    /// `https://HOST:PORT`.
    pub url: String,
    /// The user.
    pub user: &'static str,
    /// Her password.
    pub password: &'static str,
    /// SHA-256 of its certificate.
    pub thumbprint: String,
}

/// gantryd with its movers and a job.
pub struct Served<'a> {
    /// Everything is in this folder.
    pub folder: &'a Path,
    /// gantryd.
    pub daemon: Daemon,
    /// Its client, with the first administrator's token.
    pub client: Client,
    /// The repository's first, then the proxies'.
    pub movers: Vec<Running>,
    /// The job's id.
    pub job: String,
    /// The repository's id.
    pub repository: String,
}

/// The log-in of the first administrator.
pub fn login(folder: &Path, daemon: &Daemon) -> Login {
    let state = folder.join("gantryd");
    let read = |name: &str| std::fs::read_to_string(state.join(name)).expect("it is there");
    Login {
        url: format!("https://{}", daemon.api),
        ca: read("ca.pem"),
        token: Secret::new(read("admin.token").trim()),
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

impl Served<'_> {
    /// Everything, from nothing, for gantry-sim; the job takes these machines.
    pub async fn new<'a>(sphere: &'a Sphere, machines: &[&str]) -> Served<'a> {
        let vcenter = Reached {
            url: format!("https://{}", sphere.sim.vcenter().expect("it listens")),
            user: "administrator@vsphere.local",
            password: PASSWORD,
            thumbprint: sphere.sim.lock().endpoints[0].thumbprint_sha256.clone(),
        };
        Served::of(sphere.scratch.path(), &vcenter, machines).await
    }

    /// The same for any vCenter.
    pub async fn of<'a>(folder: &'a Path, vcenter: &Reached, machines: &[&str]) -> Served<'a> {
        let daemon = Daemon::start(folder, None);
        let client = Client::new(&login(folder, &daemon)).expect("a client");
        let (mut movers, mut pins) = (Vec::new(), Vec::new());
        for name in ["repository-mover", "proxy-1", "proxy-2"] {
            let (process, pin) = enrol(folder, &client, name).await;
            movers.push(process);
            pins.push(pin);
        }
        let port = connected(&client, &movers).await;
        let vcenter = client
            .post(
                "vcenters",
                &json!({
                    "name": "vcenter", "user": vcenter.user, "password": vcenter.password,
                    "url": vcenter.url, "trust": { "thumbprint": vcenter.thumbprint },
                }),
            )
            .await
            .expect("a vCenter");
        for number in [1, 2] {
            let proxy = json!({ "name": format!("proxy-{number}"), "mover": pins[number] });
            client.post("proxies", &proxy).await.expect("a proxy");
        }
        let (address, id) = port;
        let repository = json!({
            "name": "repository", "mover": pins[0], "address": address, "repository_id": id,
            "free_bytes_min": 0,
        });
        let repository = client.post("repositories", &repository).await.expect("a repository");
        let job = json!({
            "name": "nightly", "vcenter": vcenter["id"], "repository": repository["id"],
            "selection": { "patterns": machines }, "retries": { "count": 1, "pause_seconds": 1 },
        });
        let job = client.post("jobs", &job).await.expect("a job");
        let (job, repository) = (text(&job["id"]), text(&repository["id"]));
        Served { folder, daemon, client, movers, job, repository }
    }

    /// Gives the first proxy the only road of hot-add, as this machine; the other is out of service.
    pub async fn attach_to(&self, sphere: &Sphere, machine: &str) {
        let uuid = {
            let state = sphere.sim.lock();
            let mut machines = state.site.machines.values();
            let found = machines.find(|one| one.name == machine).expect("it is there");
            found.instance_uuid.clone()
        };
        let devices = sphere.devices(machine).display().to_string();
        self.change_proxies(|number, record| match number {
            0 => {
                record["vm_instance_uuid"] = uuid.clone().into();
                record["device_folder"] = devices.clone().into();
                record["modes"] = json!(["hotadd"]);
            }
            _ => record["enabled"] = false.into(),
        })
        .await;
    }

    /// Changes the proxies' records.
    pub async fn change_proxies(&self, change: impl Fn(usize, &mut Value)) {
        let proxies = self.client.get("proxies").await.expect("asked");
        for (number, stored) in proxies["items"].as_array().expect("a list").iter().enumerate() {
            let mut record = stored.clone();
            change(number, &mut record);
            let path = format!("proxies/{}", text(&record["id"]));
            let put = self.client.call(gantry_http::Method::PUT, &path, Some(&record)).await;
            put.expect("changed");
        }
    }

    /// Starts the job; the session's id.
    pub async fn begin(&self, full: bool) -> String {
        let path = format!("jobs/{}/start", self.job);
        let begun = self.client.post(&path, &json!({ "full": full })).await;
        text(&begun.expect("it begins")["id"])
    }

    /// Waits for a session's end.
    pub async fn end(&self, session: &str) -> Value {
        let until = Instant::now() + WITHIN;
        loop {
            let record = self.client.get(&format!("sessions/{session}")).await.expect("asked");
            if record["state"] == "finished" {
                return record;
            }
            assert!(Instant::now() < until, "it does not end: {}", self.log(session).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A session's log, and what the programs wrote.
    pub async fn log(&self, session: &str) -> String {
        let path = format!("sessions/{session}/events?limit=500");
        let events = self.client.get(&path).await;
        let mut text = format!("{events:#?}");
        for process in self.movers.iter().chain([&self.daemon.process]) {
            text += &process.errors();
        }
        text
    }

    /// Kills gantryd with -9 and starts it again.
    pub fn kill_and_start_again(&mut self) {
        self.daemon.process.kill_hard();
        self.start_again();
    }

    /// Starts a gantryd that has ended again, where it was.
    pub fn start_again(&mut self) {
        let Daemon { api, control, .. } = &self.daemon;
        let (api, control) = (api.clone(), control.clone());
        self.daemon = Daemon::start(self.folder, Some((&api, &control)));
        self.client = Client::new(&login(self.folder, &self.daemon)).expect("a client");
    }

    /// Ends the movers, so that the repository's folder can be read.
    pub fn stop_movers(&mut self) {
        for process in self.movers.drain(..) {
            process.terminate();
            process.wait().ok();
        }
    }
}

/// Invites and enrols a mover over the API, and starts it; its process and its pin.
async fn enrol(scratch: &Path, client: &Client, name: &str) -> (Running, String) {
    let is_repository = name.starts_with("repository");
    let role = if is_repository { "repository" } else { "proxy" };
    let made = client.post("enrolments", &json!({ "mover": name, "role": role })).await;
    let line = text(&made.expect("invited")["line"]);
    let token: EnrolmentToken = line.parse().expect("a token");
    let (csr, key) = Identity::request(name).expect("a request");
    let request = json!({ "mover": name, "secret": token.secret.reveal(), "csr": csr });
    let reply = client.post("enroll", &request).await.expect("enrolled");
    let folder = scratch.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    let identity = key.certified(&folder, reply["certificate"].as_str().expect("PEM"));
    let identity = identity.expect("its certificate");
    identity.save(&folder.join("identity.pem")).expect("written");
    let authority: PathBuf = folder.join("authority.pem");
    std::fs::write(&authority, reply["authority"].as_str().expect("PEM")).expect("written");
    let served = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\n[trust]\nfile = {authority:?}\n[repository]\ncreate = true\npath = {:?}\n",
        scratch.join("repository"),
    );
    let config = format!(
        "[identity]\nfile = {:?}\n[control]\naddress = {:?}\nname = {:?}\nauthority = {authority:?}\nstate = {:?}\n{}",
        folder.join("identity.pem"),
        token.control,
        token.name,
        folder.join("state"),
        if is_repository { served.as_str() } else { "" },
    );
    let file = folder.join("mover.toml");
    std::fs::write(&file, config).expect("written");
    let mut command = Command::new(mover());
    command.args(["serve", "--config"]).arg(&file);
    (Running::start(&folder, &mut command), identity.pin().to_string())
}

/// Waits for every mover; the repository's address and id.
async fn connected(client: &Client, movers: &[Running]) -> (String, String) {
    let until = Instant::now() + WITHIN;
    loop {
        let all = client.get("movers").await.expect("asked");
        let items = all["items"].as_array().cloned().unwrap_or_default();
        let up = items.iter().filter(|mover| !mover["connected_since_ms"].is_null()).count();
        let repository = items.iter().find_map(|mover| {
            let served = mover.get("repository").filter(|served| !served.is_null())?;
            Some((served["port"].as_u64()?, served["id"].as_str()?.to_owned()))
        });
        if let (true, Some((port, id))) = (up == movers.len(), repository) {
            return (format!("gantry://127.0.0.1:{port}"), id);
        }
        assert!(Instant::now() < until, "movers do not connect: {all}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
