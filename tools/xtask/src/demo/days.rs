//! Two nights and the morning after: full, incremental with a proxy that is killed, restores.
//!
//! In: a site. Out: what each session said, and whether each restored disk is the one that its machine
//! had at the snapshot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::images::Machine;
use super::site::{PROXIES, Site};
use crate::shell;

/// Each read of the datastore takes longer by this while a proxy is to be killed, milliseconds: so
/// that it is in the middle of something.
const SLOW_READ_MS: u64 = 15;
/// Between the nights; guests write all the time.
const DAY: Duration = Duration::from_millis(1500);
/// How long a proxy may take to be given something to do.
const BUSY_WITHIN: Duration = Duration::from_secs(30);

/// A night and what it was good for.
pub struct Day {
    /// What kind of backup.
    pub kind: &'static str,
    /// The session with its machines and disks, as `gantry session show --json` says.
    pub session: Value,
    /// What its log says of the proxy that died.
    pub incidents: Vec<String>,
    /// One for each disk of each machine.
    pub restores: Vec<Restore>,
    /// The snapshot of each machine's disks, for the comparison.
    snapshots: Vec<Vec<u64>>,
}

/// A restored disk.
pub struct Restore {
    /// Its machine.
    pub machine: &'static str,
    /// Bytes of the disk.
    pub bytes: u64,
    /// Whether it is what the machine had, bit for bit.
    pub identical: bool,
}

/// Passes both nights, restores everything.
///
/// # Errors
/// When a session fails.
pub fn pass(site: &mut Site, machines: &[Machine]) -> Result<Vec<Day>> {
    let full = shell::step("first night: full backup", || night(site, machines, "full", None))?;
    shell::step("a day of work in the guests", || {
        std::thread::sleep(DAY);
        Ok(())
    })?;
    let second = shell::step("second night: changed blocks, and a proxy is killed", || {
        site.order(&json!({ "kind": "read-latency", "delay_ms": SLOW_READ_MS }))?;
        let mut killed = None;
        let day = night(site, machines, "incremental (CBT)", Some(&mut killed))?;
        site.order(&json!({ "kind": "clear" }))?;
        site.start_mover(&killed.context("no proxy was killed")?)?;
        Ok(day)
    })?;
    let open = site.order(&json!({ "kind": "open-snapshots" }))?;
    ensure!(open["snapshots"] == json!([]), "snapshots are left: {open}");
    let mut days = vec![full, second];
    for day in &mut days {
        shell::step(&format!("restore and compare: {}", day.kind), || {
            restore(site, machines, day)
        })?;
    }
    shell::step("verify the repository", || {
        site.gantry(&["repository", "verify", "repository"])?;
        let id = last_session(site)?;
        site.gantry(&["session", "watch", &id]).map(drop)
    })?;
    Ok(days)
}

/// One session of the job; a proxy that is at work is killed if somebody wants to know which.
fn night(
    site: &mut Site,
    machines: &[Machine],
    kind: &'static str,
    kill: Option<&mut Option<String>>,
) -> Result<Day> {
    let mut begun = site.begin(&["job", "start", "nightly", "--watch", "--json"])?;
    if let Some(killed) = kill {
        let until = Instant::now() + BUSY_WITHIN;
        while killed.is_none() {
            ensure!(!begun.has_ended()?, "the session was over before a proxy could be killed");
            ensure!(Instant::now() < until, "no proxy has anything to do");
            *killed = busy_proxy(site)?;
        }
        let name = killed.as_deref().unwrap_or_default();
        println!("    kill -9 of {name}");
        site.kill_mover(name)?;
    }
    let said = begun.finish(None)?;
    let session: Value = serde_json::from_str(&said).context("the session's JSON")?;
    let result = session["session"]["result"].as_str().unwrap_or_default();
    ensure!(matches!(result, "success" | "warning"), "the session ended {result}: {session:#}");
    let mut snapshots = Vec::new();
    for machine in machines {
        let newest = |disk: usize, site: &mut Site| {
            let ask = json!({ "kind": "snapshots", "machine": machine.name, "disk": disk });
            let known = site.order(&ask)?;
            let newest = known["snapshots"].as_array().and_then(|all| all.last()?.as_u64());
            newest.with_context(|| format!("{} was never frozen", machine.name))
        };
        let disks = (0..machine.disks.len()).map(|disk| newest(disk, site));
        snapshots.push(disks.collect::<Result<Vec<u64>>>()?);
    }
    let incidents = incidents(site)?;
    Ok(Day { kind, session, incidents, restores: Vec::new(), snapshots })
}

/// A proxy that carries out a task.
fn busy_proxy(site: &Site) -> Result<Option<String>> {
    let movers = site.json(&["mover", "list"])?;
    let busy = movers["items"].as_array().into_iter().flatten().find(|mover| {
        let name = mover["mover"]["name"].as_str().unwrap_or_default();
        PROXIES.contains(&name) && mover["tasks_running"].as_u64() > Some(0)
    });
    Ok(busy.and_then(|mover| mover["mover"]["name"].as_str()).map(str::to_owned))
}

/// Warnings of the newest session's log.
fn incidents(site: &Site) -> Result<Vec<String>> {
    let events = site.json(&["session", "events", "last"])?;
    let all = events.as_array().into_iter().flatten().map(|one| &one["event"]);
    let warnings = all.filter(|event| event["severity"] != "info");
    Ok(warnings
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap_or("-");
            format!("{} {}: {}", text("vm"), text("disk"), text("text"))
        })
        .collect())
}

fn last_session(site: &Site) -> Result<String> {
    let last = site.json(&["session", "show", "last"])?;
    Ok(last["session"]["id"].as_str().context("no session")?.to_owned())
}

/// Restores a night's points to files of a proxy, and has the simulator compare them.
fn restore(site: &mut Site, machines: &[Machine], day: &mut Day) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("gantry-restored-").tempdir_in(site.folder())?;
    let points = site.json(&["point", "list"])?;
    for (machine, snapshots) in machines.iter().zip(&day.snapshots) {
        let runs = day.session["vms"].as_array().into_iter().flatten().map(|vm| &vm["run"]);
        let made =
            runs.filter(|run| run["vm"] == machine.name).find_map(|run| run["point"].as_str());
        let made = made.with_context(|| format!("no point of {}", machine.name))?;
        let known = points["items"].as_array().into_iter().flatten();
        let name =
            known.filter(|point| point["id"] == made).find_map(|point| point["name"].as_str());
        let name = name.context("the point is not listed")?;
        let to = folder.path().join(machine.name);
        std::fs::create_dir(&to)?;
        let to_text = to.to_str().context("a path that is no text")?;
        let place = ["--proxy", PROXIES[0], "--folder", to_text, "--watch"];
        site.gantry(&[&["restore", "files", name, "--point", made][..], &place].concat())?;
        let mut files: Vec<_> = std::fs::read_dir(&to)?.flatten().map(|one| one.path()).collect();
        files.sort();
        if files.len() != machine.disks.len() {
            bail!("{} has {} disks, restored are {files:?}", machine.name, machine.disks.len());
        }
        for (disk, (file, snapshot)) in files.iter().zip(snapshots).enumerate() {
            let compared = site.order(&json!({
                "kind": "compare", "machine": machine.name, "disk": disk, "image": file,
                "snapshot": snapshot,
            }))?;
            day.restores.push(Restore {
                machine: machine.name,
                bytes: compared["bytes"].as_u64().unwrap_or(0),
                identical: compared["differences"] == json!([]),
            });
            std::fs::remove_file(file)?;
        }
    }
    Ok(())
}
