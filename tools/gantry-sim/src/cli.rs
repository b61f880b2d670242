//! The command line, and the line that says that the simulator is ready.
//!
//! In: arguments. Out: a running simulator; one line of JSON on standard output. The password never
//! stands on a command line: it is read from a file, or made and written to one with mode 0600.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::json;

use crate::drill;
use crate::launch::launch;
use crate::sim::{Kind, Options, Password, Sim};
use crate::site::inventory;

const HELP: &str = include_str!("help.txt");

/// A simulated vCenter with ESXi hosts, for tests, demonstrations and fault drills.
#[derive(Debug, Parser)]
#[command(name = "gantry-sim", version, after_long_help = HELP)]
pub struct Arguments {
    /// Folder that holds the datastores (made if absent); a private temporary one when not given
    #[arg(long)]
    root: Option<PathBuf>,
    /// Inventory file (TOML); the built-in site when not given
    #[arg(long)]
    inventory: Option<PathBuf>,
    /// vCenter's port on the loopback interface; 0 takes any
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The user of all endpoints
    #[arg(long, default_value = "administrator@vsphere.local")]
    user: String,
    /// File with the password; written with a new one when it does not exist
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// Seconds without a request after which a session expires
    #[arg(long, default_value_t = 1800.0)]
    session_seconds: f64,
    /// Objects in a page of RetrievePropertiesEx, at most
    #[arg(long, default_value_t = 100)]
    page: usize,
    /// Objects in one answer of WaitForUpdatesEx, at most
    #[arg(long, default_value_t = 100)]
    update_page: usize,
    /// Milliseconds that each task takes at least
    #[arg(long, default_value_t = 20)]
    task_ms: u64,
    /// Seconds without progress after which an NFC lease ends
    #[arg(long, default_value_t = 300.0)]
    lease_seconds: f64,
    /// NFC leases that may be open at a time
    #[arg(long, default_value_t = 50)]
    leases: usize,
    /// A privilege that the user lacks (HasPrivilegeOnEntities says so); may be repeated
    #[arg(long, value_name = "PRIVILEGE")]
    deny: Vec<String>,
    /// File with faults to begin with (JSON, see below); may be repeated
    #[arg(long, value_name = "FILE")]
    faults: Vec<PathBuf>,
    /// One fault to begin with (JSON, see below); may be repeated
    #[arg(long, value_name = "JSON")]
    fault: Vec<String>,
    /// Take drills and questions on standard input, a line of JSON each, and end with it
    #[arg(long)]
    orders: bool,
    /// Where all random choices come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the program.
///
/// # Errors
/// When the inventory is wrong, a file cannot be had, or a port cannot be had.
pub fn run() -> Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("starting the runtime")?.block_on(start(arguments))
}

async fn start(arguments: Arguments) -> Result<()> {
    // Held to the end: a private folder goes with the program.
    let private = tempfile::Builder::new().prefix("gantry-sim-").tempdir()?;
    let root = arguments.root.clone().unwrap_or_else(|| private.path().to_owned());
    std::fs::create_dir_all(&root).with_context(|| format!("folder {}", root.display()))?;
    let file = arguments.password_file.clone().unwrap_or_else(|| root.join("password"));
    let options = options(&arguments, root, password(&file)?)?;
    let inventory = inventory::read(arguments.inventory.as_deref())?;
    let mut commands = Vec::new();
    for file in &arguments.faults {
        commands.extend(drill::read(file)?);
    }
    for command in &arguments.fault {
        commands.extend(drill::parse(command.as_bytes()).context("--fault")?);
    }
    let sim = launch(options, &inventory, arguments.port).await?;
    for command in commands {
        drill::apply(&sim, command)?;
    }
    println!("{}", ready(&sim, &file));
    std::io::stdout().flush()?;
    if !arguments.orders {
        return ended().await;
    }
    // A thread of its own: a runtime would wait for a read of standard input when it ends.
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(tell.send(obey(&sim))));
    tokio::select! {
        done = ended() => done,
        done = told => done?,
    }
}

/// Does what standard input says, to its end.
fn obey(sim: &Arc<Sim>) -> Result<()> {
    for line in std::io::stdin().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let answer = match order(sim, &line) {
            Ok(answer) => answer,
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// A drill, or a question.
fn order(sim: &Arc<Sim>, line: &str) -> Result<serde_json::Value> {
    if let Ok(question) = serde_json::from_str(line) {
        return Ok(serde_json::to_value(drill::judge(sim, &question)?)?);
    }
    drill::parse(line.as_bytes())?
        .into_iter()
        .try_for_each(|command| drill::apply(sim, command))?;
    Ok(json!({}))
}

/// Until a person or a parent process says so.
async fn ended() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        done = tokio::signal::ctrl_c() => done?,
    }
    Ok(())
}

fn options(arguments: &Arguments, root: PathBuf, password: Password) -> Result<Options> {
    let seconds = |name: &str, value: f64| {
        ensure!((0.0..1e9).contains(&value), "--{name} {value} is out of range");
        Ok(Duration::from_secs_f64(value))
    };
    ensure!(arguments.page > 0 && arguments.update_page > 0, "a page holds at least one object");
    Ok(Options {
        user: arguments.user.clone(),
        password,
        root,
        session_idle: seconds("session-seconds", arguments.session_seconds)?,
        page_objects: arguments.page,
        update_objects: arguments.update_page,
        task_time: Duration::from_millis(arguments.task_ms),
        lease_time: seconds("lease-seconds", arguments.lease_seconds)?,
        leases_open_max: arguments.leases,
        denied: arguments.deny.clone(),
        seed: arguments.seed,
    })
}

/// The password of the file, which is made if it is not there.
fn password(file: &Path) -> Result<Password> {
    const PASSWORD_BYTES_MAX: u64 = 1024;
    let named = || format!("password file {}", file.display());
    if file.exists() {
        let mut text = String::new();
        let open = std::fs::File::open(file).with_context(named)?;
        open.take(PASSWORD_BYTES_MAX).read_to_string(&mut text).with_context(named)?;
        return Ok(Password::new(text.trim_end_matches(['\r', '\n'])));
    }
    let password = Password::new(crate::session::secret(12));
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let made = made.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", named()))?;
    writeln!(made, "{}", password.reveal()).with_context(named)?;
    Ok(password)
}

fn ready(sim: &Arc<Sim>, password_file: &Path) -> serde_json::Value {
    let state = sim.lock();
    let url = |address: Option<std::net::SocketAddr>| {
        address.map(|address| format!("https://{address}/sdk")).unwrap_or_default()
    };
    let hosts = state.endpoints.iter().filter_map(|endpoint| match endpoint.kind {
        Kind::VCenter => None,
        Kind::Host(number) => Some(json!({
            "name": state.site.hosts[number].name,
            "url": url(endpoint.address),
            "thumbprint": endpoint.thumbprint,
            "thumbprint_sha256": endpoint.thumbprint_sha256,
        })),
    });
    let center = &state.endpoints[0];
    json!({
        "url": url(center.address),
        "thumbprint": center.thumbprint,
        "thumbprint_sha256": center.thumbprint_sha256,
        "user": sim.options.user,
        "password_file": password_file,
        "root": sim.options.root,
        "hosts": hosts.collect::<Vec<_>>(),
    })
}
