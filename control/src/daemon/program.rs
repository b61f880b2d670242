//! The program `gantryd`: configuration in, the service out, until it is told to end.
//!
//! In: a TOML file, SIGTERM or SIGINT. Out: the control listener for movers, the REST API over TLS. At
//! the first start an administrator's token is written to `STATE/admin.token`, the certificate that
//! clients trust to `STATE/ca.pem`. A stop is graceful: no request and no link is cut before it has
//! ended or its time is over; movers go on, and the next start goes on with the sessions. Invariant: no
//! token and no key is printed or logged.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gantry_api::access::{token_digest, token_text};
use gantry_api::server::{Bounds, serve, tls_config};
use gantry_api::{Api, ApiSettings};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::secret::Secret;
use gantry_database::model::{Id, Role, TokenRecord};
use gantry_database::{Database, Page};
use gantry_transport::{read_secret, write_secret};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::backend::Gantryd;
use super::copies;
use super::restore::PROXY_BACK_WITHIN;
use super::start::{StartOptions, Started, private_folder, start};
use crate::durable_file;
use crate::run::{failed, now_ms};

/// Bytes of a configuration file.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Threads: it decides and tells, and moves no block.
const WORKERS: usize = 2;
/// How long requests and links may take to end at a stop: less than systemd's TimeoutStopSec.
const STOPPED_WITHIN: std::time::Duration = std::time::Duration::from_secs(45);
/// Between two looks whether gantryd's certificate soon ends.
const RENEW_EVERY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// The control plane of Gantry: jobs, schedules, movers, vCenter, REST API.
#[derive(Debug, Parser)]
#[command(name = "gantryd", version, max_term_width = 100)]
pub struct Arguments {
    /// What to log on standard error: error, warn, info, debug, trace.
    #[arg(long, global = true, default_value = "info", env = "GANTRY_LOG")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service until SIGTERM or SIGINT. What is interrupted goes on at the next start.
    Serve(ServeArguments),
    /// Make a token while gantryd is stopped: for administrators who have lost theirs. While it
    /// runs: gantry token create.
    Token(TokenArguments),
    /// Make the state folder of a lost gantryd anew, from the copy of its database that every
    /// repository keeps.
    Rebuild(RebuildArguments),
}

#[derive(Debug, Args)]
struct RebuildArguments {
    /// Configuration file of gantryd; its state folder must hold no database.
    #[arg(long, value_name = "FILE", env = "GANTRYD_CONFIG")]
    config: PathBuf,
    /// A repository's folder (its newest copy is taken), or a copy.
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// The lost gantryd's key file (STATE/database/secrets.key), which is in no copy. Without it
    /// passwords must be set again and movers enrolled anew.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ServeArguments {
    /// Configuration file (TOML; see docs/operations.md).
    #[arg(long, value_name = "FILE", env = "GANTRYD_CONFIG")]
    config: PathBuf,
    /// Print one line of JSON with the addresses when the service is ready.
    #[arg(long)]
    json_ready: bool,
}

#[derive(Debug, Args)]
struct TokenArguments {
    /// Configuration file of gantryd.
    #[arg(long, value_name = "FILE", env = "GANTRYD_CONFIG")]
    config: PathBuf,
    /// What the token is called.
    #[arg(long)]
    name: String,
    /// What it may do.
    #[arg(long, value_enum, default_value = "admin")]
    role: RoleArgument,
    /// New file for the token (mode 0600).
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArgument {
    Admin,
    Operator,
    Viewer,
}

impl From<RoleArgument> for Role {
    fn from(role: RoleArgument) -> Role {
        match role {
            RoleArgument::Admin => Role::Admin,
            RoleArgument::Operator => Role::Operator,
            RoleArgument::Viewer => Role::Viewer,
        }
    }
}

/// gantryd's configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Folder of its state; made if missing, for nobody else to read.
    state: PathBuf,
    /// Host names and addresses by which movers and people reach it; the first is the one that movers
    /// demand of its certificate.
    names: Vec<String>,
    #[serde(default)]
    api: ApiConfig,
    #[serde(default)]
    control: ControlConfig,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ApiConfig {
    /// Where the REST API listens.
    address: SocketAddr,
    /// Its certificate chain (PEM) instead of one of gantryd's own authority.
    certificate: Option<PathBuf>,
    /// The key of that certificate (PEM, mode 0600).
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ControlConfig {
    /// Where movers connect (UDP).
    address: SocketAddr,
}

impl Default for ApiConfig {
    fn default() -> ApiConfig {
        let address = ([127, 0, 0, 1], 8443).into();
        ApiConfig { address, certificate: None, key: None }
    }
}

impl Default for ControlConfig {
    fn default() -> ControlConfig {
        ControlConfig { address: ([127, 0, 0, 1], 8444).into() }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = match tracing_subscriber::EnvFilter::try_new(&arguments.log) {
        Ok(filter) => filter,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "gantryd: --log {}: {error}", arguments.log);
            return ExitCode::from(FailureKind::Usage.exit_code());
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "gantryd: {failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn run(command: &Command) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = runtime
        .map_err(|error| failed(FailureKind::Internal, format!("starting tokio: {error}")))?;
    match command {
        Command::Serve(arguments) => runtime.block_on(service(arguments)),
        Command::Token(arguments) => runtime.block_on(make_token(arguments)),
        Command::Rebuild(arguments) => runtime.block_on(rebuild(arguments)),
    }
}

fn usage(text: impl std::fmt::Display) -> Failure {
    failed(FailureKind::Usage, text)
}

fn read_config(path: &Path) -> Result<Config, Failure> {
    let name = path.display();
    let size = std::fs::metadata(path).map_err(|error| usage(format!("{name}: {error}")))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(usage(format!("{name}: {size} bytes are no configuration")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| usage(format!("{name}: {error}")))?;
    let config: Config =
        toml::from_str(&text).map_err(|error| usage(format!("{name}: {error}")))?;
    match config.api.certificate.is_some() == config.api.key.is_some() {
        true => Ok(config),
        false => Err(usage(format!("{name}: [api] needs both certificate and key, or neither"))),
    }
}

async fn service(arguments: &ServeArguments) -> Result<(), Failure> {
    let config = read_config(&arguments.config)?;
    // Bound before anything is begun: an address that is taken is told at once, and invitations name
    // the port.
    let listener = TcpListener::bind(config.api.address).await;
    let listener = listener.map_err(|error| {
        usage(format!("[api] address {}: {error}; choose another", config.api.address))
    })?;
    let api = listener.local_addr().map_err(|error| failed(FailureKind::Internal, error))?;
    let host = config.names.first().ok_or_else(|| {
        usage("'names' is empty: give the host name or address by which gantryd is reached")
    })?;
    let options = StartOptions {
        state: config.state.clone(),
        control: config.control.address,
        names: config.names.clone(),
        url: format!("https://{host}:{}", api.port()),
        proxy_back_within: PROXY_BACK_WITHIN,
    };
    let started = start(&options).await?;
    let tls = certificate(&config, &started)?;
    publish(&config.state, &started).await?;
    let (stop, stopped) = watch::channel(false);
    let backend = Arc::new(Gantryd::new(&started));
    let router = Api::new(backend, ApiSettings::default(), stopped.clone()).router();
    let serving = tokio::spawn(serve(listener, tls, router, Bounds::default(), stopped));
    tokio::spawn(keep_certificate(started.clone()));
    ready(arguments, api, started.parts.fleet.address());
    wait_for_a_signal().await?;
    tracing::info!(
        "stopping: movers go on with what they do, the next start goes on with sessions"
    );
    notify("STOPPING=1");
    stop.send_replace(true);
    let ending = async {
        let _ = serving.await;
        started.parts.events.flush().await;
        started.parts.fleet.close().await;
    };
    // The database is not closed under sessions that still work: they end with the process, as in a
    // crash, and the next start goes on with them.
    if tokio::time::timeout(STOPPED_WITHIN, ending).await.is_err() {
        tracing::warn!(
            "not all requests and links ended within {} s: they are cut",
            STOPPED_WITHIN.as_secs()
        );
    }
    Ok(())
}

/// What the API shows.
fn certificate(
    config: &Config,
    started: &Started,
) -> Result<Arc<gantry_api::server::TlsConfig>, Failure> {
    let (chain, key) = match (&config.api.certificate, &config.api.key) {
        (Some(chain), Some(key)) => {
            let chain = std::fs::read_to_string(chain)
                .map_err(|error| usage(format!("{}: {error}", chain.display())))?;
            let text = String::from_utf8(read_secret(key)?)
                .map_err(|_| usage(format!("{} is no PEM", key.display())))?;
            (chain, Secret::new(text))
        }
        _ => {
            let identity = started.authority.identity();
            (identity.certificates_pem(), identity.to_pem())
        }
    };
    tls_config(chain.as_bytes(), &key).map_err(usage)
}

/// Writes what clients need: the certificate to trust and, where there is no token yet, the first one.
async fn publish(state: &Path, started: &Started) -> Result<(), Failure> {
    let path = state.join("ca.pem");
    let written = durable_file::replace(&path, started.authority.certificate_pem().as_bytes());
    written.map_err(|error| usage(format!("{}: {error}", path.display())))?;
    tracing::info!("clients trust {} (gantry login --ca)", path.display());
    let database = &started.parts.database;
    if database.tokens(&Page::first(1)).await?.is_empty() {
        let path = state.join("admin.token");
        // Of a token that is no more.
        let _ = std::fs::remove_file(&path);
        keep_token(database, "first administrator", Role::Admin, &path).await?;
        tracing::warn!(
            "the first administrator's token is in {}: log in with it (gantry login), make tokens \
             for people (gantry token create), and delete the file",
            path.display()
        );
    }
    Ok(())
}

/// Draws a token, writes it to a new file that nobody else can read, then keeps its digest; neither
/// without the other.
async fn keep_token(
    database: &Database,
    name: &str,
    role: Role,
    path: &Path,
) -> Result<(), Failure> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| failed(FailureKind::Internal, error))?;
    let (text, now) = (token_text(random), now_ms());
    let digest = token_digest(text.reveal());
    let record = TokenRecord {
        id: Id::draw(now),
        name: name.to_owned(),
        role,
        hash: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        created_ms: now,
        expires_ms: None,
        last_used_ms: None,
    };
    write_secret(path, format!("{}\n", text.reveal()).as_bytes())?;
    let kept = database.create_token(&record).await;
    if kept.is_err() {
        let _ = std::fs::remove_file(path);
    }
    Ok(kept?)
}

async fn make_token(arguments: &TokenArguments) -> Result<(), Failure> {
    let config = read_config(&arguments.config)?;
    private_folder(&config.state)?;
    let database = Database::open(&config.state.join("database")).await?;
    keep_token(&database, &arguments.name, arguments.role.into(), &arguments.output).await
}

async fn rebuild(arguments: &RebuildArguments) -> Result<(), Failure> {
    let config = read_config(&arguments.config)?;
    let made = copies::rebuild(&config.state, &arguments.from, arguments.key.as_deref()).await?;
    let mut out = std::io::stdout().lock();
    let lost = &made.imported.secrets_lost;
    let written = if arguments.json {
        let said = serde_json::json!({
            "copy": made.copy, "created_ms": made.imported.created_ms, "secrets_lost": lost,
            "authority": made.authority, "sessions_ended": made.sessions_ended,
        });
        writeln!(out, "{said}")
    } else {
        let mut text = format!("rebuilt from {}", made.copy.display());
        let movers = match made.authority {
            true => "movers come by themselves once gantryd runs under its old name and ports",
            false => "the authority is lost: enrol every mover anew (gantry mover invite)",
        };
        text += &format!("\n{movers}");
        if made.sessions_ended > 0 {
            text += &format!("\n{} sessions were not over; they have failed", made.sessions_ended);
        }
        lost.iter().for_each(|secret| text += &format!("\nset again: {secret}"));
        writeln!(out, "{text}")
    };
    written.map_err(|error| failed(FailureKind::Internal, error))
}

async fn keep_certificate(started: Started) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        match started.authority.renew_if_due(now_ms()) {
            Ok(true) => {
                let identity = started.authority.identity();
                if let Ok(trust) = started.authority.trust() {
                    started.parts.fleet.set_identity(identity, trust).await;
                }
                tracing::warn!(
                    "gantryd's certificate was renewed; the API shows it from the next start on"
                );
            }
            Ok(false) => {}
            Err(failure) => tracing::error!("gantryd's certificate cannot be renewed: {failure}"),
        }
    }
}

fn ready(arguments: &ServeArguments, api: SocketAddr, control: SocketAddr) {
    tracing::info!("the API listens at https://{api}, movers are awaited at {control}");
    if arguments.json_ready {
        let line = serde_json::json!({
            "ready": { "api": api.to_string(), "control": control.to_string() }
        });
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
    notify("READY=1");
}

/// Tells systemd, if it started us (sd_notify(3)): a datagram to the socket that it names.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| {
        // A name that begins with '@' is abstract.
        match path.to_str().and_then(|path| path.strip_prefix('@')) {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                socket.send_to_addr(state.as_bytes(), &address)
            }
            None => socket.send_to(state.as_bytes(), &path),
        }
    });
    if let Err(error) = sent {
        tracing::warn!("systemd could not be told {state}: {error}");
    }
}

async fn wait_for_a_signal() -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| failed(FailureKind::Internal, error));
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // A second one ends it at once.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("stopped at once");
        std::process::exit(0);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_needs_little_and_nothing_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gantryd.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_config(&path)
        };
        let config = read("state = \"/var/lib/gantry\"\nnames = [\"gantryd.example\"]\n").unwrap();
        assert!(config.api.address.ip().is_loopback() && config.control.address.port() == 8444);
        for wrong in [
            "names = []",
            "state = \"/s\"\nnames = []\nsurplus = 1",
            "state = \"/s\"\nnames = [\"a\"]\n[api]\nkey = \"/k\"",
        ] {
            let failure = read(wrong).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Usage, "{wrong}");
            assert!(failure.message.contains("gantryd.toml"), "{failure}");
        }
    }
}
