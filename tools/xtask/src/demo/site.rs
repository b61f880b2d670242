//! The site of the demonstration: every step is a command that an administrator would type.
//!
//! In: programs, a private folder, machines. Out: a [`Site`] with a simulated vCenter, gantryd, a
//! repository's mover, two proxies' movers and a job, all on the loopback interface.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::images::Machine;
use super::programs::{self, Programs, Service};

/// How long movers may take to connect.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);

/// Names of the movers.
pub const PROXIES: [&str; 2] = ["proxy-1", "proxy-2"];
const REPOSITORY: &str = "repository";

/// Everything that runs.
pub struct Site {
    programs: Programs,
    folder: PathBuf,
    /// Its standard input takes drills and questions.
    orders: ChildStdin,
    vcenter: Service,
    gantryd: Service,
    movers: Vec<(String, Service)>,
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("no text: {value}"))
}

impl Site {
    /// Starts and configures everything.
    ///
    /// # Errors
    /// When a program fails or does not come up.
    pub fn start(programs: &Programs, folder: &Path, machines: &[Machine]) -> Result<Site> {
        let (mut vcenter, facts) = start_vcenter(programs, folder, machines)?;
        let orders = vcenter.input().context("the simulator takes no orders")?;
        let (gantryd, ready) = start_gantryd(programs, folder)?;
        let movers = Vec::new();
        let (programs, folder) = (programs.clone(), folder.to_owned());
        let mut site = Site { programs, folder, orders, vcenter, gantryd, movers };
        let state = site.folder.join("gantryd");
        let url = format!("https://{}", text(&ready["ready"]["api"])?);
        let mut login = site.command(&["login", &url, "--ca"]);
        login.arg(state.join("ca.pem")).arg("--token-file").arg(state.join("admin.token"));
        programs::run(&mut login)?;
        site.enrol(REPOSITORY, "repository")?;
        PROXIES.iter().try_for_each(|proxy| site.enrol(proxy, "proxy"))?;
        let served = site.connected()?;
        site.configure(&facts, &served)?;
        for machine in machines {
            site.order(&json!({ "kind": "watch", "machine": machine.name }))?;
        }
        Ok(site)
    }

    /// Vcenter, proxies, repository and job as records of gantryd.
    fn configure(&self, facts: &Value, served: &Value) -> Result<()> {
        let url = text(&facts["url"])?.trim_end_matches("/sdk");
        let user = text(&facts["user"])?;
        let mut vcenter = self.command(&["vcenter", "add", "vcenter"]);
        vcenter.args(["-s", &format!("url={url}"), "-s", &format!("user={user}")]);
        let trust = json!({ "thumbprint": facts["thumbprint_sha256"] });
        vcenter.args(["-s", &format!("trust={trust}"), "--password-file"]);
        programs::run(vcenter.arg(text(&facts["password_file"])?))?;
        for proxy in PROXIES {
            self.gantry(&["proxy", "add", proxy, "-s", &format!("mover={proxy}")])?;
        }
        let (port, id) = (&served["port"], text(&served["id"])?);
        let address = format!("address=gantry://127.0.0.1:{port}");
        let id = format!("repository_id={id}");
        let mover = format!("mover={REPOSITORY}");
        let add = ["repository", "add", REPOSITORY, "-s", &mover, "-s", &address, "-s", &id];
        self.gantry(&[&add[..], &["-s", "free_bytes_min=0"]].concat())?;
        let add = ["job", "add", "nightly", "-s", "vcenter=vcenter", "-s", "repository=repository"];
        let patterns = r#"selection.patterns=["*"]"#;
        self.gantry(&[&add[..], &["-s", patterns]].concat())?;
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.programs.command("gantry");
        command.args(arguments).env("GANTRY_LOGIN", self.folder.join("login.json"));
        command
    }

    /// Runs `gantry` with these arguments; gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn gantry(&self, arguments: &[&str]) -> Result<String> {
        programs::run(&mut self.command(arguments))
    }

    /// The same, as JSON.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.gantry(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&said).with_context(|| format!("gantry {arguments:?} said {said}"))
    }

    /// Begins `gantry` with these arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&self, arguments: &[&str]) -> Result<programs::Begun> {
        programs::start(&mut self.command(arguments))
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives the simulator a drill or a question.
    ///
    /// # Errors
    /// When it refuses.
    pub fn order(&mut self, order: &Value) -> Result<Value> {
        writeln!(self.orders, "{order}")?;
        self.orders.flush()?;
        let answer = self.vcenter.answer()?;
        ensure!(answer["error"].is_null(), "{order}: {}", answer["error"]);
        Ok(answer)
    }

    /// Invites a mover, enrols and starts it.
    fn enrol(&mut self, name: &str, role: &str) -> Result<()> {
        let invitation = self.gantry(&["mover", "invite", name, "--role", role])?;
        let folder = self.folder.join(name);
        let mut enroll = self.programs.command("gantry-mover");
        enroll.args(["enroll", "-", "--folder"]).arg(&folder);
        enroll.arg("--state").arg(folder.join("state"));
        if role == "repository" {
            enroll.arg("--repository").arg(self.folder.join("backups"));
            enroll.args(["--listen", "127.0.0.1:0"]);
        }
        programs::feed(&mut enroll, &invitation)?;
        self.start_mover(name)
    }

    /// Starts a mover that is enrolled.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_mover(&mut self, name: &str) -> Result<()> {
        let mut serve = self.programs.command("gantry-mover");
        serve.args(["serve", "--config"]).arg(self.folder.join(name).join("mover.toml"));
        let is_ready = |line: &str| line.contains("listening") || line.contains("service");
        let (service, _) = Service::start(name, &mut serve, &self.folder, is_ready)?;
        self.movers.push((name.to_owned(), service));
        Ok(())
    }

    /// Kills a mover at once.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_mover(&mut self, name: &str) -> Result<()> {
        let at = self.movers.iter().position(|(known, _)| known == name);
        let at = at.with_context(|| format!("{name} does not run"))?;
        self.movers.remove(at).1.kill()
    }

    /// Waits until every mover is connected; what the repository's serves.
    fn connected(&self) -> Result<Value> {
        let until = Instant::now() + CONNECTED_WITHIN;
        loop {
            let listed = self.json(&["mover", "list"])?;
            let movers = listed["items"].as_array().cloned().unwrap_or_default();
            let up = movers.iter().filter(|mover| !mover["connected_since_ms"].is_null()).count();
            let served = movers.iter().map(|mover| &mover["repository"]).find(|one| !one.is_null());
            if let (true, Some(served)) = (up == self.movers.len(), served) {
                return Ok(served.clone());
            }
            if Instant::now() > until {
                bail!("movers do not connect: {listed}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops everything, gently.
    ///
    /// # Errors
    /// When something does not end well.
    pub fn stop(self) -> Result<()> {
        self.gantryd.stop()?;
        self.movers.into_iter().try_for_each(|(_, mover)| mover.stop())?;
        self.vcenter.stop()
    }

    /// The ends of all logs.
    pub fn last_words(&self) -> String {
        let movers = self.movers.iter().map(|(_, mover)| mover);
        let all = [&self.vcenter, &self.gantryd].into_iter().chain(movers);
        all.map(Service::last_words).collect::<Vec<_>>().join("\n")
    }
}

fn start_vcenter(
    programs: &Programs,
    folder: &Path,
    machines: &[Machine],
) -> Result<(Service, Value)> {
    let mut inventory = "name = \"vcenter.demo.example\"\n[[datacenter]]\nname = \"DC0\"\n\
         hosts = [\"esx0.demo.example\"]\nnetworks = [\"VM Network\"]\n\
         [[datacenter.datastore]]\nname = \"datastore1\"\n"
        .to_owned();
    for machine in machines {
        let disk = |path: &PathBuf| format!("{{ image = {path:?} }}");
        let disks: Vec<String> = machine.disks.iter().map(disk).collect();
        inventory += &format!(
            "[[vm]]\nname = {:?}\nguest_writes_per_second = {}\ndisk = [{}]\n",
            machine.name,
            machine.writes_per_second,
            disks.join(", ")
        );
    }
    let file = folder.join("inventory.toml");
    std::fs::write(&file, inventory)?;
    let mut command = programs.command("gantry-sim");
    command.arg("--orders").arg("--inventory").arg(file);
    command.arg("--root").arg(folder.join("datastores")).stdin(Stdio::piped());
    command.arg("--password-file").arg(folder.join("vcenter.password"));
    let is_ready = |line: &str| line.starts_with('{');
    let (service, line) = Service::start("gantry-sim", &mut command, folder, is_ready)?;
    // The simulator has its own copies.
    machines.iter().flat_map(|machine| &machine.disks).try_for_each(std::fs::remove_file)?;
    Ok((service, serde_json::from_str(&line)?))
}

/// Starts gantryd with an empty state folder, at ports that are free; what it said when it was ready.
///
/// # Errors
/// When it does not come up.
pub fn start_gantryd(programs: &Programs, folder: &Path) -> Result<(Service, Value)> {
    let config = folder.join("gantryd.toml");
    let text = format!(
        "state = {:?}\nnames = [\"127.0.0.1\"]\n[api]\naddress = \"127.0.0.1:0\"\n\
         [control]\naddress = \"127.0.0.1:0\"\n",
        folder.join("gantryd")
    );
    std::fs::write(&config, text)?;
    let mut command = programs.command("gantryd");
    command.args(["serve", "--json-ready", "--config"]).arg(&config);
    let is_ready = |line: &str| line.starts_with("{\"ready\":");
    let (service, line) = Service::start("gantryd", &mut command, folder, is_ready)?;
    Ok((service, serde_json::from_str(&line)?))
}
