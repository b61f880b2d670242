//! gantryd's parts in this process, with movers of their own over the control link.
//!
//! In: a simulated vSphere. Out: a [`Site`] with a repository, two proxies and a job; sessions, their
//! ends and logs. Movers end with the site.

use std::process::Command;
use std::time::{Duration, Instant};

use gantry_common::enrolment::{EnrolRequest, EnrolmentToken, MoverRole};
use gantry_common::ids::PeerId;
use gantry_common::secret::Secret;
use gantry_common::source::ServerTrust;
use gantry_control::daemon::sessions::new_session;
use gantry_control::daemon::start::{StartOptions, Started, start};
use gantry_control::run::now_ms;
use gantry_database::model::{
    Id, Job, Proxy, Repository, Retries, Selection, SessionRecord, SessionState, Trigger, VCenter,
};
use gantry_transport::Identity;

use crate::program::{Running, mover};
use crate::vsphere::{PASSWORD, Sphere, machines};

/// How long a session of some MiB may take on a busy machine.
const SESSION_WITHIN: Duration = Duration::from_secs(120);
/// How long movers may take to connect.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);

/// A mover under gantryd.
pub struct Mover {
    /// Its key.
    pub pin: PeerId,
    /// Its process, until it is ended.
    pub process: Option<Running>,
}

/// gantryd with its movers and a job.
pub struct Site<'a> {
    /// vSphere.
    pub sphere: &'a Sphere,
    /// gantryd.
    pub started: Started,
    /// The repository's first, then the proxies'.
    pub movers: Vec<Mover>,
    /// The job.
    pub job: Job,
}

/// How gantryd starts; with the port of an earlier life its movers find it again.
pub fn options(sphere: &Sphere, port: u16) -> StartOptions {
    StartOptions {
        state: sphere.scratch.join("gantryd"),
        control: std::net::SocketAddr::from(([127, 0, 0, 1], port)),
        names: vec!["127.0.0.1".into()],
        url: "https://127.0.0.1:1".into(),
        proxy_back_within: Duration::from_secs(5),
    }
}

/// Enrols a mover and starts it; `more` is the rest of its configuration.
pub async fn start_mover(
    sphere: &Sphere,
    started: &Started,
    name: &str,
    role: MoverRole,
    more: &str,
) -> Mover {
    let minute = Duration::from_secs(60);
    let invited = started.enrolment.invite(name, role, minute, now_ms()).await.expect("invited");
    let token: EnrolmentToken = invited.token.reveal().parse().expect("a token");
    let (csr, key) = Identity::request(name).expect("a request");
    let request = EnrolRequest { mover: name.to_owned(), secret: token.secret.clone(), csr };
    let reply = started.enrolment.enroll(request, now_ms()).await.expect("enrolled");
    let folder = sphere.scratch.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    let identity = key.certified(&folder, &reply.certificate).expect("its certificate");
    identity.save(&folder.join("identity.pem")).expect("written");
    std::fs::write(folder.join("authority.pem"), &reply.authority).expect("written");
    let config = format!(
        "[identity]\nfile = {:?}\n[control]\naddress = {:?}\nname = {:?}\nauthority = {:?}\nstate = {:?}\n{more}",
        folder.join("identity.pem"),
        token.control,
        token.name,
        folder.join("authority.pem"),
        folder.join("state"),
    );
    let file = folder.join("mover.toml");
    std::fs::write(&file, config).expect("written");
    let mut command = Command::new(mover());
    command.args(["serve", "--config"]).arg(&file);
    Mover { pin: identity.pin(), process: Some(Running::start(&folder, &mut command)) }
}

impl Site<'_> {
    /// gantryd, a repository and two proxies; `proxy` is the proxies' configuration.
    pub async fn new<'a>(sphere: &'a Sphere, proxy: &str) -> Site<'a> {
        let started = start(&options(sphere, 0)).await.expect("gantryd starts");
        let authority = sphere.scratch.join("repository-mover/authority.pem");
        let served = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n[trust]\nfile = {authority:?}\n[repository]\ncreate = true\npath = {:?}\n",
            sphere.scratch.join("repository"),
        );
        let mut movers = Vec::new();
        for (name, role, more) in [
            ("repository-mover", MoverRole::Repository, served.as_str()),
            ("proxy-1", MoverRole::Proxy, proxy),
            ("proxy-2", MoverRole::Proxy, proxy),
        ] {
            movers.push(start_mover(sphere, &started, name, role, more).await);
        }
        let job = configure(sphere, &started, &movers).await;
        Site { sphere, started, movers, job }
    }

    /// Begins a session of the job.
    pub async fn begin(&self, full: bool) -> Id {
        let record = new_session(&self.job, Trigger::Manual, full, None);
        let parts = &self.started.parts;
        parts.database.create_session(&record, &[]).await.expect("written down");
        let id = record.id;
        parts.begin(record);
        id
    }

    /// Waits until something is copied.
    pub async fn copies(&self, session: Id) {
        let until = Instant::now() + SESSION_WITHIN;
        while self.started.parts.fleet.movers().iter().all(|mover| mover.tasks_running == 0) {
            assert!(Instant::now() < until, "no task runs:\n{}", self.log(session).await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for a session's end.
    pub async fn end(&self, id: Id) -> SessionRecord {
        let until = Instant::now() + SESSION_WITHIN;
        loop {
            let record = self.started.parts.database.session(id).await.expect("it is there");
            if record.state == SessionState::Finished {
                return record;
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.log(id).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its log, and what movers wrote.
    pub async fn log(&self, id: Id) -> String {
        let events = self.started.parts.database.events(id, 0, 10_000).await.expect("a log");
        let line = |(_, event): &(u64, gantry_database::model::EventRecord)| {
            let (vm, disk) = (event.vm.as_deref(), event.disk.as_deref());
            format!(
                "{:?} {} {}: {}",
                event.severity,
                vm.unwrap_or("-"),
                disk.unwrap_or("-"),
                event.text
            )
        };
        let mut text: Vec<String> = events.iter().map(line).collect();
        for mover in self.movers.iter().filter_map(|mover| mover.process.as_ref()) {
            text.push(mover.errors());
        }
        text.join("\n")
    }

    /// The point that a session made of a machine.
    pub async fn point(&self, id: Id, vm: &str) -> String {
        let runs = self.started.parts.database.vm_runs(id).await.expect("its runs");
        let point = runs.iter().filter(|run| run.vm == vm).find_map(|run| run.point);
        point.unwrap_or_else(|| panic!("no point of {vm}")).to_string()
    }

    /// Ends the repository's mover, so that its folder can be read.
    pub fn stop_movers(&mut self) {
        for mover in &mut self.movers {
            if let Some(process) = mover.process.take() {
                process.terminate();
                process.wait().ok();
            }
        }
    }
}

/// The records of a site.
async fn configure(sphere: &Sphere, started: &Started, movers: &[Mover]) -> Job {
    let (parts, now) = (&started.parts, now_ms());
    let until = Instant::now() + CONNECTED_WITHIN;
    let repository = loop {
        let views = parts.fleet.movers();
        let found = views.iter().find_map(|view| view.facts.repository.clone());
        let is_there = |mover: &Mover| {
            views.iter().any(|view| view.pin == mover.pin && view.connected_since_ms.is_some())
        };
        if let (true, Some(found)) = (movers.iter().all(is_there), found) {
            break found;
        }
        assert!(Instant::now() < until, "movers do not connect: {views:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let vcenter = VCenter {
        id: Id::draw(now),
        name: "vcenter".into(),
        url: format!("https://{}", sphere.sim.vcenter().expect("it listens")),
        user: "administrator@vsphere.local".into(),
        trust: ServerTrust::Thumbprint(sphere.sim.lock().endpoints[0].thumbprint_sha256.clone()),
    };
    let password = Secret::new(PASSWORD);
    let database = &parts.database;
    database.create(&vcenter, &[(vcenter.password(), password)], now).await.expect("kept");
    for (number, mover) in movers.iter().enumerate().skip(1) {
        let text = serde_json::json!({
            "id": Id::draw(now), "name": format!("proxy-{number}"), "mover": mover.pin.to_string(),
        });
        let proxy: Proxy = serde_json::from_value(text).expect("a proxy");
        database.create(&proxy, &[], now).await.expect("kept");
    }
    let text = serde_json::json!({
        "id": Id::draw(now), "name": "repository", "mover": movers[0].pin.to_string(),
        "address": format!("gantry://127.0.0.1:{}", repository.port),
        "repository_id": repository.id.to_string(), "free_bytes_min": 0,
    });
    let repository: Repository = serde_json::from_value(text).expect("a repository");
    database.create(&repository, &[], now).await.expect("kept");
    let selection =
        Selection { patterns: vec!["web".into(), "idle".into()], ..Selection::default() };
    let mut job = Job::new(Id::draw(now), "nightly", vcenter.id, repository.id, selection);
    job.retries = Retries { count: 1, pause_seconds: 1 };
    database.create(&job, &[], now).await.expect("kept");
    parts.refresh().await.expect("read");
    job
}

/// A runtime to run gantryd on, and to end it with.
pub fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

/// The simulator has a runtime of its own, which must not end within another.
pub fn on_runtime(seed: u64, test: impl AsyncFnOnce(&Sphere)) {
    let sphere = machines(seed);
    runtime().block_on(test(&sphere));
}
