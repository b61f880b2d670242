//! Jobs and sessions: started, watched, shown, stopped.
//!
//! In: names, ids. Out: live bars on a terminal and lines elsewhere, a summary that adds up, the
//! session's result as exit code.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use gantry_common::failure::{Failure, FailureKind};
use gantry_http::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::records::{Kind, find, path};
use super::table::{Show, bytes};
use super::{Asked, JobCommand, SessionCommand, show, usage};
use crate::cli::{say, say_json};
use crate::client::Client;

pub(super) const SESSIONS: &[super::table::Column] = &[
    ("ID", "/id", Show::Plain),
    ("KIND", "/kind", Show::Plain),
    ("NAME", "/name", Show::Plain),
    ("STATE", "/state", Show::Plain),
    ("RESULT", "/result", Show::Plain),
    ("BEGAN", "/created_ms", Show::Time),
    ("READ", "/totals/read_bytes", Show::Bytes),
    ("SENT", "/totals/transferred_bytes", Show::Bytes),
];

pub(super) const MACHINES: &[super::table::Column] = &[
    ("NAME", "/name", Show::Plain),
    ("FOLDER", "/folder", Show::Plain),
    ("POWER", "/power", Show::Plain),
    ("CBT", "/cbt", Show::Plain),
    ("DISKS", "/disks", Show::Count),
];

pub(super) async fn job(command: JobCommand) -> Result<(), Failure> {
    match command {
        // Carried out by `records`.
        JobCommand::Record(_) => Ok(()),
        JobCommand::Start { name, full, vm, watch, asked } => {
            let client = asked.client()?;
            let path = format!("{}/start", path(&client, Kind::Job, &name).await?);
            let begun = client.post(&path, &json!({ "full": full, "vms": vm })).await?;
            if watch {
                return follow(&client, &asked, begun["id"].as_str().unwrap_or_default()).await;
            }
            show(&asked, &begun, SESSIONS)
        }
        JobCommand::Stop { name, now, asked } => {
            let client = asked.client()?;
            let path = format!("{}/stop", path(&client, Kind::Job, &name).await?);
            show(&asked, &client.post(&path, &stop(now)).await?, SESSIONS)
        }
        JobCommand::Enable { name, asked } => enable(&asked, &name, true).await,
        JobCommand::Disable { name, asked } => enable(&asked, &name, false).await,
        JobCommand::Vms { name, asked } => {
            let client = asked.client()?;
            let path = format!("{}/vms", path(&client, Kind::Job, &name).await?);
            show(&asked, &client.get(&path).await?, MACHINES)
        }
    }
}

fn stop(now: bool) -> Value {
    json!({ "mode": if now { "now" } else { "graceful" } })
}

async fn enable(asked: &Asked, name: &str, enabled: bool) -> Result<(), Failure> {
    let client = asked.client()?;
    let path = format!("{}/enabled", path(&client, Kind::Job, name).await?);
    client.call(Method::PUT, &path, Some(&json!({ "enabled": enabled }))).await.map(drop)
}

/// A session's id; `last` is the newest.
async fn id(client: &Client, id: &str) -> Result<String, Failure> {
    if id != "last" {
        return match id.chars().all(|c| c.is_ascii_hexdigit()) && !id.is_empty() {
            true => Ok(id.to_owned()),
            false => Err(usage(format!("'{id}' is no session's id: see gantry session list"))),
        };
    }
    let newest = client.get("sessions?limit=1").await?;
    let newest = newest["items"][0]["id"].as_str();
    newest.map(str::to_owned).ok_or_else(|| usage("there is no session yet"))
}

pub(super) async fn session(command: SessionCommand) -> Result<(), Failure> {
    match command {
        SessionCommand::List { job, limit, asked } => {
            let client = asked.client()?;
            let mut path = format!("sessions?limit={limit}");
            if let Some(job) = job {
                let job = find(&client, Kind::Job, &job).await?;
                path += &format!("&job={}", job["id"].as_str().unwrap_or_default());
            }
            show(&asked, &client.get(&path).await?, SESSIONS)
        }
        SessionCommand::Show { id: name, stages, asked } => {
            let client = asked.client()?;
            let id = id(&client, &name).await?;
            let record = summary(&client, &asked, &id).await?;
            if stages && !asked.json {
                show_stages(&record["totals"]["more"]["stages"]);
            }
            Ok(())
        }
        SessionCommand::Watch { id: name, asked } => {
            let client = asked.client()?;
            let id = id(&client, &name).await?;
            follow(&client, &asked, &id).await
        }
        SessionCommand::Events { id: name, asked } => {
            let client = asked.client()?;
            let id = id(&client, &name).await?;
            events(&client, &asked, &id).await
        }
        SessionCommand::Stop { id: name, now, asked } => {
            let client = asked.client()?;
            let path = format!("sessions/{}/stop", id(&client, &name).await?);
            show(&asked, &client.post(&path, &stop(now)).await?, SESSIONS)
        }
    }
}

/// The whole log, a page after the other.
async fn events(client: &Client, asked: &Asked, id: &str) -> Result<(), Failure> {
    let (mut after, mut all) = (0, Vec::new());
    loop {
        let page = client.get(&format!("sessions/{id}/events?limit=500&after={after}")).await?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        let Some(last) = items.last().and_then(|one| one["number"].as_u64()) else { break };
        after = last;
        match asked.json {
            true => all.extend(items),
            false => items.iter().for_each(|one| say(&line(&one["event"]))),
        }
    }
    if asked.json { say_json(&all) } else { Ok(()) }
}

fn line(event: &Value) -> String {
    let mark = match event["severity"].as_str() {
        Some("warning") => "warning: ",
        Some("error") => "error: ",
        _ => "",
    };
    let of = |field: &str| event[field].as_str().map(|text| format!("{text}: "));
    let of = [of("vm"), of("disk")].into_iter().flatten().collect::<String>();
    let text = format!("{mark}{of}{}", event["text"].as_str().unwrap_or_default());
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A bar for each disk.
struct Bars {
    all: MultiProgress,
    disks: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, progress: &Value) {
        let style = ProgressStyle::with_template(
            "{prefix:28!} {bar:24} {bytes:>11} of {total_bytes:11} {msg}",
        );
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        for disk in progress["disks"].as_array().into_iter().flatten() {
            let text = |field: &str| disk[field].as_str().unwrap_or("").to_owned();
            let name = format!("{} {}", text("vm"), text("disk"));
            let bar = self.disks.entry(name.clone()).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(0).with_style(style.clone()));
                bar.set_prefix(name.replace(char::is_control, "?"));
                bar
            });
            bar.set_length(disk["todo_bytes"].as_u64().unwrap_or(0));
            bar.set_position(disk["done_bytes"].as_u64().unwrap_or(0));
            bar.set_message(format!("{} {} {}", text("state"), text("proxy"), text("mode")));
        }
    }
}

/// Shows a session until it ends.
///
/// # Errors
/// `Source`: it failed.
pub(super) async fn follow(client: &Client, asked: &Asked, id: &str) -> Result<(), Failure> {
    let is_terminal = std::io::stderr().is_terminal() && !asked.json;
    let mut bars = Bars { all: MultiProgress::new(), disks: BTreeMap::new() };
    client
        .follow(id, |kind, data| match kind {
            "progress" if is_terminal => bars.show(data),
            "event" if is_terminal => drop(bars.all.println(line(data))),
            "event" if !asked.json => say(&line(data)),
            _ => {}
        })
        .await?;
    bars.disks.values().for_each(ProgressBar::finish);
    let record = summary(client, asked, id).await?;
    match record["result"].as_str() {
        Some("failed") => {
            let why = record["reason"].as_str().unwrap_or("see its log");
            Err(Failure::new(FailureKind::Source, format!("the session failed: {why}")))
        }
        _ => Ok(()),
    }
}

/// Prints what came of a session, and gives its record.
async fn summary(client: &Client, asked: &Asked, id: &str) -> Result<Value, Failure> {
    let record = client.get(&format!("sessions/{id}")).await?;
    let vms = client.get(&format!("sessions/{id}/vms")).await?;
    if asked.json {
        say_json(&json!({ "session": record, "vms": vms["items"] }))?;
        return Ok(record);
    }
    let text = |field: &str| record[field].as_str().unwrap_or("-").to_owned();
    let seconds = match (record["created_ms"].as_u64(), record["ended_ms"].as_u64()) {
        (Some(began), Some(ended)) => format!("{:.1} s", ended.saturating_sub(began) as f64 / 1e3),
        _ => "not over".to_owned(),
    };
    say(&format!(
        "{} {}: {} {} ({seconds})",
        text("name"),
        text("id"),
        text("state"),
        text("result")
    ));
    if let Some(reason) = record["reason"].as_str() {
        say(&format!("  {reason}"));
    }
    let total = |field: &str| bytes(record["totals"][field].as_u64().unwrap_or(0));
    say(&format!(
        "  processed {}, read {}, sent {}, new in the repository {}",
        total("processed_bytes"),
        total("read_bytes"),
        total("transferred_bytes"),
        total("stored_bytes")
    ));
    if let Some(name) = record["totals"]["more"]["bottleneck"].as_str() {
        let percent = &record["totals"]["more"]["bottleneck_percent"];
        let share =
            |stage: &str| format!("{stage} {:.0} %", percent[stage].as_f64().unwrap_or(0.0));
        let shares = ["source", "proxy", "network", "target"].map(share).join(", ");
        say(&format!("  bottleneck: {name} ({shares})"));
    }
    for vm in vms["items"].as_array().into_iter().flatten() {
        machine(vm);
    }
    Ok(record)
}

/// A line for each stage: bytes, time of work, and latencies of a block.
fn show_stages(stages: &Value) {
    let stages = stages.as_array().map(Vec::as_slice).unwrap_or_default();
    if stages.is_empty() {
        return say("  stages: none; they are known once a disk has been copied");
    }
    say(
        "  stage           bytes   work of all    median      90 %      99 %   longest  (of a block)",
    );
    for stage in stages {
        let name = stage["stage"].as_str().unwrap_or("-").replace(char::is_control, "?");
        let number = |field: &str| stage[field].as_u64().unwrap_or(0);
        let times = ["p50_us", "p90_us", "p99_us", "max_us"].map(|field| latency(number(field)));
        say(&format!(
            "  {name:<9} {:>11} {:>11.1} s {:>9} {:>9} {:>9} {:>9}",
            bytes(number("bytes")),
            stage["busy_seconds"].as_f64().unwrap_or(0.0),
            times[0],
            times[1],
            times[2],
            times[3],
        ));
    }
}

/// Microseconds for a person.
fn latency(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn machine(vm: &Value) {
    let run = &vm["run"];
    let text = |value: &Value| value.as_str().unwrap_or("-").replace(char::is_control, "?");
    let end = run["reason"].as_str().or(run["point"].as_str()).unwrap_or("");
    say(&format!(
        "  {} (attempt {}): {} {end}",
        text(&run["vm"]),
        run["attempt"],
        run["result"].as_str().unwrap_or(run["state"].as_str().unwrap_or("-")),
    ));
    for task in vm["tasks"].as_array().into_iter().flatten() {
        let number = |field: &str| bytes(task["numbers"][field].as_u64().unwrap_or(0));
        say(&format!(
            "    {}: {}, {}; read {} of {}, sent {}; bottleneck {}",
            text(&task["disk"]),
            text(&task["state"]),
            text(&task["mode"]),
            number("bytes_read"),
            number("bytes_processed"),
            number("bytes_transferred"),
            task["numbers"]["bottleneck_name"].as_str().unwrap_or("-"),
        ));
    }
}
