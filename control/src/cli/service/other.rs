//! The rest of the commands over the API: log-in, movers, points, tokens, settings, manual pages.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap::CommandFactory as _;
use gantry_common::failure::{Failure, FailureKind};
use gantry_http::Method;
use serde_json::{Value, json};

use super::records::{Kind, find, path};
use super::sessions::MACHINES;
use super::table::{Column, Show};
use super::{
    ConfigCommand, LoginArguments, MoverCommand, MoverRole, PointArguments, PointCommand,
    RepositoryCommand, TokenCommand, TokenRole, VcenterMore, login_path, read_secret, read_text,
    show, usage,
};
use crate::cli::{say, say_json};
use crate::client::{Client, Login};

const MOVERS: &[Column] = &[
    ("NAME", "/mover/name", Show::Plain),
    ("ROLE", "/mover/role", Show::Plain),
    ("CONNECTED", "/connected_since_ms", Show::Time),
    ("HOST", "/host", Show::Plain),
    ("CORES", "/cores", Show::Plain),
    ("TASKS", "/tasks_running", Show::Plain),
    ("FREE", "/repository/free_bytes", Show::Bytes),
    ("PIN", "/mover/pin", Show::Plain),
];
const POINTS: &[Column] = &[
    ("POINT", "/id", Show::Plain),
    ("NAME", "/name", Show::Plain),
    ("MADE", "/created_ms", Show::Time),
    ("DISKS", "/disks", Show::Count),
    ("FLAGS", "/flags", Show::Plain),
];
const TOKENS: &[Column] = &[
    ("NAME", "/name", Show::Plain),
    ("ROLE", "/role", Show::Plain),
    ("MADE", "/created_ms", Show::Time),
    ("ENDS", "/expires_ms", Show::Time),
    ("USED", "/last_used_ms", Show::Time),
];
const INVITATIONS: &[Column] = &[
    ("MOVER", "/mover", Show::Plain),
    ("ROLE", "/role", Show::Plain),
    ("MADE", "/created_ms", Show::Time),
    ("ENDS", "/expires_ms", Show::Time),
    ("USED", "/used_ms", Show::Time),
];
const SETTINGS: &[Column] = &[("NAME", "/name", Show::Plain), ("VALUE", "/value", Show::Plain)];
const SESSION: &[Column] =
    &[("ID", "/id", Show::Plain), ("NAME", "/name", Show::Plain), ("STATE", "/state", Show::Plain)];
const TEST: &[Column] = &[
    ("PRODUCT", "/product", Show::Plain),
    ("API", "/api_version", Show::Plain),
    ("NOTES", "/notes", Show::Plain),
];
const SPACE: &[Column] =
    &[("CAPACITY", "/capacity_bytes", Show::Bytes), ("FREE", "/free_bytes", Show::Bytes)];

/// `gantry login`: only what works is kept.
pub(in crate::cli) async fn login(arguments: &LoginArguments) -> Result<(), Failure> {
    let token = read_secret(&arguments.token_file)?;
    let login = Login { url: arguments.url.clone(), ca: read_text(&arguments.ca)?, token };
    let about = Client::new(&login)?.get("about").await?;
    let file = login_path(arguments.login.clone())?;
    login.save(&file)?;
    let text = |field: &str| about[field].as_str().unwrap_or("-").to_owned();
    say(&format!(
        "logged in to gantryd {} as '{}' ({}); kept in {}",
        text("version"),
        text("token"),
        text("role"),
        file.display()
    ));
    Ok(())
}

pub(super) async fn vcenter(command: VcenterMore) -> Result<(), Failure> {
    match command {
        VcenterMore::Test { name, asked } => {
            let client = asked.client()?;
            let path = format!("{}/test", path(&client, Kind::Vcenter, &name).await?);
            show(&asked, &client.post(&path, &json!({})).await?, TEST)
        }
        VcenterMore::Vms { name, asked } => {
            let client = asked.client()?;
            let path = format!("{}/vms", path(&client, Kind::Vcenter, &name).await?);
            show(&asked, &client.get(&path).await?, MACHINES)
        }
    }
}

pub(super) async fn repository(command: RepositoryCommand) -> Result<(), Failure> {
    match command {
        // Carried out by `records`.
        RepositoryCommand::Record(_) => Ok(()),
        RepositoryCommand::Stat { name, asked } => {
            let client = asked.client()?;
            let path = format!("{}/stat", path(&client, Kind::Repository, &name).await?);
            show(&asked, &client.get(&path).await?, SPACE)
        }
        RepositoryCommand::Verify { name, percent, checksums_only, rate, asked } => {
            let client = asked.client()?;
            let path = format!("{}/verify", path(&client, Kind::Repository, &name).await?);
            let how = json!({
                "percent": percent, "checksums_only": checksums_only,
                "rate_bytes_per_second": rate.map(|rate| rate.bytes_per_second),
            });
            show(&asked, &client.post(&path, &how).await?, SESSION)
        }
        RepositoryCommand::Collect { name, dry_run, rewrite_max, abandon_unfinished, asked } => {
            let client = asked.client()?;
            let path = format!("{}/collect", path(&client, Kind::Repository, &name).await?);
            let how = json!({
                "dry_run": dry_run, "rewrite_bytes_max": rewrite_max,
                "abandon_unfinished": abandon_unfinished,
            });
            show(&asked, &client.post(&path, &how).await?, SESSION)
        }
    }
}

pub(super) async fn mover(command: MoverCommand) -> Result<(), Failure> {
    match command {
        MoverCommand::List { asked } => show(&asked, &asked.client()?.get("movers").await?, MOVERS),
        MoverCommand::Invite { name, role, hours, asked } => {
            let role = match role {
                MoverRole::Proxy => "proxy",
                MoverRole::Repository => "repository",
            };
            let wanted = json!({
                "mover": name, "role": role, "valid_seconds": hours.saturating_mul(3600),
            });
            let made = asked.client()?.post("enrolments", &wanted).await?;
            if asked.json {
                return say_json(&made);
            }
            // Alone, so that it can be piped to the mover's host.
            say(made["line"].as_str().unwrap_or_default());
            Ok(())
        }
        MoverCommand::Invitations { asked } => {
            show(&asked, &asked.client()?.get("enrolments").await?, INVITATIONS)
        }
        MoverCommand::Withdraw { name, asked } => {
            let path = format!("enrolments/{}", encoded(&name));
            asked.client()?.call(Method::DELETE, &path, None).await.map(drop)
        }
        MoverCommand::Revoke { name, asked } => {
            let client = asked.client()?;
            let all = client.get("movers").await?;
            let mut items = all["items"].as_array().into_iter().flatten();
            let is_it =
                |one: &&Value| one["mover"]["name"] == *name || one["mover"]["pin"] == *name;
            let found = items.find(is_it).and_then(|one| one["mover"]["pin"].as_str());
            let pin = found.ok_or_else(|| usage(format!("there is no mover '{name}'")))?;
            client.call(Method::DELETE, &format!("movers/{pin}"), None).await.map(drop)
        }
    }
}

/// The repository, where there is one.
pub(super) async fn only_repository(client: &Client) -> Result<Value, Failure> {
    let all = client.get(Kind::Repository.path()).await?;
    match all["items"].as_array().map_or(&[][..], Vec::as_slice) {
        [only] => Ok(only.clone()),
        _ => Err(usage("in which repository? give --repository NAME")),
    }
}

/// Where a point stands.
async fn place(client: &Client, asked: &PointArguments) -> Result<String, Failure> {
    let repository = match &asked.repository {
        Some(name) => find(client, Kind::Repository, name).await?,
        None => only_repository(client).await?,
    };
    let id = repository["id"].as_str().unwrap_or_default();
    Ok(format!("repositories/{id}/points/{}", encoded(&asked.point)))
}

/// A part of an address: what is no letter, digit or one of `-._` is escaped.
fn encoded(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => (byte as char).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

pub(super) async fn point(command: PointCommand) -> Result<(), Failure> {
    let (method, more, body, arguments) = match &command {
        PointCommand::List { repository, name, deleted, asked } => {
            let client = asked.client()?;
            let mut path = format!("points?deleted={deleted}");
            if let Some(repository) = repository {
                let record = find(&client, Kind::Repository, repository).await?;
                path += &format!("&repository={}", record["id"].as_str().unwrap_or_default());
            }
            if let Some(name) = name {
                path += &format!("&name={}", encoded(name));
            }
            let (mut all, mut after) = (Vec::new(), String::new());
            loop {
                let page = client.get(&format!("{path}{after}")).await?;
                all.extend(page["items"].as_array().into_iter().flatten().cloned());
                match page["next"].as_str() {
                    Some(next) => after = format!("&after={next}"),
                    None => return show(asked, &json!({ "items": all }), POINTS),
                }
            }
        }
        PointCommand::Show(point) => (Method::GET, "", None, point),
        PointCommand::Config(point) => (Method::GET, "/vm-config", None, point),
        PointCommand::Delete { last_too: true, point } => {
            (Method::DELETE, "?last_too=true", None, point)
        }
        PointCommand::Delete { point, .. } => (Method::DELETE, "", None, point),
        PointCommand::Undelete(point) => (Method::POST, "/undelete", Some(json!({})), point),
        PointCommand::Protect(point) => {
            (Method::PUT, "/protected", Some(json!({ "protected": true })), point)
        }
        PointCommand::Unprotect(point) => {
            (Method::PUT, "/protected", Some(json!({ "protected": false })), point)
        }
    };
    let client = arguments.asked.client()?;
    let path = place(&client, arguments).await? + more;
    let answer = client.call(method, &path, body.as_ref()).await?;
    match (&command, answer.is_null()) {
        (_, true) => Ok(()),
        (PointCommand::Config(_), _) => say_json(&answer),
        _ => show(&arguments.asked, &answer, POINTS),
    }
}

pub(super) async fn token(command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::List { asked } => show(&asked, &asked.client()?.get("tokens").await?, TOKENS),
        TokenCommand::Create { name, role, days, output, asked } => {
            let role = match role {
                TokenRole::Admin => "admin",
                TokenRole::Operator => "operator",
                TokenRole::Viewer => "viewer",
            };
            let client = asked.client()?;
            // Made first: a token that cannot be written down would let somebody in whom nobody knows.
            let mut file = std::fs::OpenOptions::new();
            let file = file.write(true).create_new(true).mode(0o600).open(&output);
            let mut file = file.map_err(|error| usage(format!("{}: {error}", output.display())))?;
            let valid_ms = days.map(|days| days.saturating_mul(24 * 3600 * 1000));
            let wanted = json!({ "name": name, "role": role, "valid_ms": valid_ms });
            let made = match client.post("tokens", &wanted).await {
                Ok(made) => made,
                Err(failure) => {
                    let _ = std::fs::remove_file(&output);
                    return Err(failure);
                }
            };
            let text = made["text"].as_str().unwrap_or_default();
            let written = writeln!(file, "{text}").and_then(|()| file.sync_all());
            written.map_err(|error| usage(format!("{}: {error}", output.display())))?;
            show(&asked, &made["token"], TOKENS)
        }
        TokenCommand::Remove { name, asked } => {
            let client = asked.client()?;
            let all = client.get("tokens").await?;
            let mut items = all["items"].as_array().into_iter().flatten();
            let found = items.find(|one| one["name"] == *name || one["id"] == *name);
            let id = found.and_then(|one| one["id"].as_str());
            let id = id.ok_or_else(|| usage(format!("there is no token '{name}'")))?;
            client.call(Method::DELETE, &format!("tokens/{id}"), None).await.map(drop)
        }
    }
}

pub(super) async fn config(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::List { asked } => {
            show(&asked, &asked.client()?.get("settings").await?, SETTINGS)
        }
        ConfigCommand::Set { name, value, asked } => {
            let value = serde_json::from_str(&value).unwrap_or(Value::String(value));
            let path = format!("settings/{}", encoded(&name));
            let body = json!({ "value": value });
            show(&asked, &asked.client()?.call(Method::PUT, &path, Some(&body)).await?, SETTINGS)
        }
        ConfigCommand::Export { asked } => say_json(&asked.client()?.get("export").await?),
    }
}

/// `gantry completion`: a script for the shell, on standard output.
pub(in crate::cli) fn completion(shell: clap_complete::Shell) {
    let mut command = crate::cli::Arguments::command();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "gantry", &mut script);
    let _ = std::io::stdout().write_all(&script);
}

/// `gantry man`: a page for each command, in a folder.
pub(in crate::cli) fn manual(folder: &Path) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(crate::cli::Arguments::command(), folder)?;
        clap_mangen::generate_to(crate::daemon::program::Arguments::command(), folder)
    };
    write()
        .map_err(|error| Failure::new(FailureKind::Usage, format!("{}: {error}", folder.display())))
}
