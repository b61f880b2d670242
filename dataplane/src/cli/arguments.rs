//! The command line of `gantry-mover`: what a person types, before it is given a meaning.
//!
//! In: arguments. Out: clap structures. Invariant: no secret is ever an argument.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gantry_common::ids::PointId;
use gantry_common::manage::Retention;
use gantry_common::source::SourceFormat;
use gantry_common::units::{BlockSize, Compression, Rate};
use gantry_guest::SnapshotKind;

mod point;
mod repo;

pub use self::point::{NamedPoints, PointCommand, PruneArguments};
pub use self::repo::{FolderArguments, GcArguments, RepoArguments, RepoCommand, VerifyArguments};

/// Gantry's data mover: backs up disks to a repository and brings them back.
///
/// Works alone on disk images and block devices, or as a proxy or repository host of gantryd.
/// Exit codes: 0 what was said is durable, 2 usage, 3 source, 4 network, 5 repository, 1 a bug.
#[derive(Debug, Parser)]
#[command(name = "gantry-mover", version, max_term_width = 100)]
pub struct Arguments {
    /// What to log on standard error: error, warn, info, debug, trace (or a filter such as
    /// `gantry_dataplane=debug`).
    #[arg(long, global = true, default_value = "warn", env = "GANTRY_LOG")]
    pub log: String,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Of `work`.
#[derive(Debug, Args)]
pub struct WorkArguments {
    /// This mover's identity, where the work names none.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up one or more disks (image files, block devices) as one restore point.
    Backup(Box<BackupArguments>),
    /// Back up as a control plane on this host says: reads the work (JSON) from standard input,
    /// writes progress and result as JSON lines. For `gantry`; a person wants `backup`.
    Work(WorkArguments),
    /// Show what a disk holds: partitions, volumes, file systems and their state, and what each filter
    /// would leave out of a backup, in bytes by reason. Reads only; writes nothing.
    Inspect(InspectArguments),
    /// Bring a disk of a restore point back.
    Restore(RestoreArguments),
    /// Look after a repository: init, list, show, verify, gc, repair, stat, rebuild-index.
    Repo {
        /// What to do.
        #[command(subcommand)]
        command: RepoCommand,
    },
    /// List, delete, bring back, protect and prune restore points.
    Point {
        /// What to do.
        #[command(subcommand)]
        command: PointCommand,
    },
    /// Run as a mover: role proxy, repository, or both. SIGTERM drains, SIGHUP reloads.
    Serve {
        /// Configuration file (TOML; see docs/operations.md).
        #[arg(long)]
        config: PathBuf,
    },
    /// Join an installation: take the invitation that gantryd printed, make this mover's key, get it
    /// certified, and write identity, authority and configuration into a folder.
    Enroll(EnrollArguments),
    /// Make this mover's identity (key and certificate), or print its pin.
    Identity {
        /// What to do.
        #[command(subcommand)]
        command: IdentityCommand,
    },
}

/// Where the repository is, and how to be let in.
#[derive(Debug, Clone, Args)]
pub struct RepositoryArguments {
    /// Repository: a folder, or gantry://HOST:PORT of a repository mover.
    #[arg(long, value_name = "DIR|gantry://HOST:PORT")]
    pub repo: String,
    /// How to be let in.
    #[command(flatten)]
    pub access: AccessArguments,
    /// How long to go on reconnecting after the connection is lost, in seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub reconnect: u64,
}

/// How to be let in to a repository mover.
#[derive(Debug, Clone, Args)]
pub struct AccessArguments {
    /// This mover's identity file (see `identity create`); needed for gantry://.
    #[arg(long)]
    pub identity: Option<PathBuf>,
    /// File with the pin or certificate of the repository mover, or of the CA that signed it.
    #[arg(long)]
    pub peer: Option<PathBuf>,
    /// Which transport to take to a gantry:// repository.
    #[arg(long, value_enum, default_value_t = TransportChoice::Auto)]
    pub transport: TransportChoice,
}

/// Which points to keep; the others are deleted (undoable until `repo gc`).
#[derive(Debug, Clone, Args)]
pub struct RetentionArguments {
    /// Keep points younger than this many days.
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
    /// Keep at least this many of the newest points, whatever their age.
    #[arg(long, value_name = "POINTS")]
    pub keep_min: Option<u32>,
    /// Keep the first point of each of this many weeks. Points are flagged when they are made, by a
    /// backup that was told so.
    #[arg(long, value_name = "WEEKS")]
    pub keep_weekly: Option<u32>,
    /// The same by month.
    #[arg(long, value_name = "MONTHS")]
    pub keep_monthly: Option<u32>,
    /// The same by year.
    #[arg(long, value_name = "YEARS")]
    pub keep_yearly: Option<u32>,
}

impl RetentionArguments {
    /// The policy; nothing if no rule is given.
    ///
    /// # Errors
    /// Rules of zero only would keep nothing but one point.
    pub fn retention(&self) -> Result<Option<Retention>, String> {
        let rules =
            [self.keep_days, self.keep_min, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        if rules.iter().all(Option::is_none) {
            return Ok(None);
        }
        let [days, points_min, weekly, monthly, yearly] = rules.map(Option::unwrap_or_default);
        let retention = Retention { days, points_min, weekly, monthly, yearly };
        if retention.has_rule() {
            return Ok(Some(retention));
        }
        Err("rules of 0 would keep the newest point only: if that is meant, say --keep-min 1"
            .into())
    }
}

/// Transport to the repository mover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransportChoice {
    /// QUIC, or TLS over TCP where UDP is blocked.
    Auto,
    /// QUIC only.
    Quic,
    /// TLS over TCP only.
    Tcp,
}

/// How a disk came to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateChoice {
    /// Its machine is off.
    Off,
    /// A snapshot for which the guest's file systems were quiesced.
    Quiesced,
    /// A snapshot, as after a power cut.
    Crash,
}

impl StateChoice {
    /// As filters take it.
    pub fn kind(self) -> SnapshotKind {
        match self {
            StateChoice::Off => SnapshotKind::Off,
            StateChoice::Quiesced => SnapshotKind::Quiesced,
            StateChoice::Crash => SnapshotKind::Crash,
        }
    }
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The disk: a raw image file, block device, VMDK, or NBD export. It must not change meanwhile.
    #[arg(required_unless_present = "source_spec")]
    pub source: Option<String>,
    /// How a file is understood: auto (a VMDK if name and content say so), raw or vmdk.
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = parse_format)]
    pub source_format: SourceFormat,
    /// JSON file (mode 0600) that says where the disk is, with what it takes to reach it.
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    pub source_spec: Option<PathBuf>,
    /// How it came to stand still; file systems that are being written to are taken for less.
    #[arg(long, value_enum, default_value = "crash")]
    pub state: StateChoice,
    /// Files to leave out, such as *.iso, /var/cache/** or Temp/; may be given several times.
    #[arg(long = "exclude-file", value_name = "MASK")]
    pub exclude_files: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArguments {
    /// Disks to back up, all of one VM: raw image files, block devices, or NBD exports
    /// (nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://...). Opened read-only.
    #[arg(required_unless_present = "source_specs")]
    pub sources: Vec<String>,
    /// How files are understood: auto (a VMDK if name and content say so), raw or vmdk.
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = parse_format)]
    pub source_format: SourceFormat,
    /// JSON file (mode 0600) that says where one disk is, with what it takes to reach it; see
    /// docs/operations.md. These disks follow the others.
    #[arg(long = "source-spec", value_name = "FILE")]
    pub source_specs: Vec<PathBuf>,
    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArguments,
    /// Name under which the point is kept: the VM's.
    #[arg(long)]
    pub name: String,
    /// Identity of each disk, in the order of the sources: stays the same when a disk moves.
    /// Default: the source's canonical path.
    #[arg(long = "disk-id", value_name = "ID")]
    pub disk_ids: Vec<String>,
    /// Identity of the frozen state that is read (a snapshot's id). A resume with another one
    /// starts over. Default: device, inode, size and modification time.
    #[arg(long)]
    pub snapshot: Option<String>,
    /// Point that the changed extents refer to. Default: the newest point of each disk.
    #[arg(long, value_name = "POINT")]
    pub base: Option<PointId>,
    /// JSON list of changed extents since the base, [{"start":0,"length":65536},...], one for each
    /// source and in their order. Without it everything is read and compared.
    #[arg(long, value_name = "FILE", requires = "base")]
    pub changed_extents: Vec<PathBuf>,
    /// Of the blocks that the changed extents leave out, read this many percent (such as 0.1; at
    /// least 64 blocks) and compare them with the base. If one differs, the list is wrong: the
    /// whole disk is read, and the report says so. Default: none.
    #[arg(long, value_name = "PERCENT", requires = "changed_extents", value_parser = percent)]
    pub audit: Option<f64>,
    /// Leave out swap: partitions of Linux (their headers are kept), swap, page and hibernation files
    /// where that is proven safe. What is left out reads as zeros when it is restored; the log says
    /// where a filter is off, and why.
    #[arg(long)]
    pub exclude_swap: bool,
    /// Leave out deleted blocks: what is free for the guest's file systems, where that is proven safe.
    #[arg(long)]
    pub exclude_deleted: bool,
    /// Leave out the content of files, such as *.iso, /var/cache/** or Temp/; may be given several
    /// times. Name and size stay.
    #[arg(long = "exclude-file", value_name = "MASK")]
    pub exclude_files: Vec<String>,
    /// How the disks came to stand still; of a machine that was on, filters leave out less.
    #[arg(long, value_enum, default_value = "crash")]
    pub state: StateChoice,
    /// What the repository keeps of this VM once the new point is committed.
    #[command(flatten)]
    pub retention: RetentionArguments,
    /// Read and send everything that the repository does not know, whatever the base.
    #[arg(long, conflicts_with_all = ["base", "changed_extents"])]
    pub full: bool,
    /// Block size: 256K, 512K, 1M or 4M.
    #[arg(long, default_value_t = BlockSize::default())]
    pub block_size: BlockSize,
    /// Compression: none, fast, optimal, high or extreme.
    #[arg(long, default_value_t = Compression::default())]
    pub compression: Compression,
    /// Limit of the rate on the wire, such as 200MB/s or 800Mbit/s.
    #[arg(long)]
    pub rate: Option<Rate>,
    /// File that holds the rate; read again when it changes, so that a running backup follows
    /// ("unlimited" lifts the limit).
    #[arg(long, conflicts_with = "rate", value_name = "FILE")]
    pub rate_file: Option<PathBuf>,
    /// Workers. Default: one for each core of the CPU set. Fewer are started where their buffers
    /// would not fit the pool (32 of 1M blocks, 8 of 4M).
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub workers: Option<u64>,
    /// Cores to use, such as 0-3,6. Default: all that this process may use.
    #[arg(long, value_name = "CORES")]
    pub cpu_set: Option<String>,
    /// Reads in flight for each worker.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub queue_depth: u64,
    /// Disks read at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub tasks: u64,
    /// Print one JSON object at the end.
    #[arg(long)]
    pub json: bool,
}

fn parse_format(text: &str) -> Result<SourceFormat, String> {
    match text {
        "auto" => Ok(SourceFormat::Auto),
        "raw" => Ok(SourceFormat::Raw),
        "vmdk" => Ok(SourceFormat::Vmdk),
        _ => Err("auto, raw or vmdk".into()),
    }
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArguments,
    /// Name of the VM.
    #[arg(long)]
    pub name: String,
    /// Which point: latest, or its id.
    #[arg(long, default_value = "latest", value_parser = parse_point)]
    pub point: PointChoice,
    /// Which disk of the point: its position in `point list`.
    #[arg(long, default_value_t = 0)]
    pub disk: u16,
    /// Where to: a file (made sparse), a block device, or - for standard output.
    #[arg(long, value_name = "PATH|-")]
    pub to: String,
    /// Afterwards compare the restored disk with this one, byte for byte.
    #[arg(long, value_name = "SOURCE")]
    pub verify_against: Option<PathBuf>,
    /// Overwrite a block device or an existing file that no interrupted restore left.
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object at the end.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `enroll`.
#[derive(Debug, Args)]
pub struct EnrollArguments {
    /// File with the invitation, one line; - for standard input. It is a secret, and holds once.
    pub invitation: PathBuf,
    /// Folder for identity.pem, authority.pem, mover.toml and the mover's state; made if needed.
    #[arg(long, value_name = "DIR", default_value = "/etc/gantry")]
    pub folder: PathBuf,
    /// Folder for what must outlive the mover.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/gantry-mover")]
    pub state: PathBuf,
    /// Of a repository: its folder, made by the first start.
    #[arg(long, value_name = "DIR")]
    pub repository: Option<PathBuf>,
    /// Of a repository: address and port on which proxies reach it.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9440")]
    pub listen: std::net::SocketAddr,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Which point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointChoice(pub Option<PointId>);

fn parse_point(text: &str) -> Result<PointChoice, String> {
    match text {
        "latest" => Ok(PointChoice(None)),
        id => id
            .parse()
            .map(|point| PointChoice(Some(point)))
            .map_err(|error| format!("{error}; or 'latest'")),
    }
}

/// Commands of `identity`.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Make a key and a self-signed certificate in FILE (mode 0600) and print its pin.
    Create {
        /// File to make; must not exist.
        file: PathBuf,
        /// Name in the certificate.
        #[arg(long, default_value = "gantry-mover")]
        name: String,
    },
    /// Print the pin of an identity: what the other side puts into its --peer file.
    Show {
        /// Identity file.
        file: PathBuf,
    },
}

/// A share in percent, above 0 and up to 100.
fn percent(text: &str) -> Result<f64, String> {
    let share: f64 = text.trim_end_matches('%').parse().map_err(|_| "not a number".to_owned())?;
    if share > 0.0 && share <= 100.0 { Ok(share) } else { Err("give 0.0001 to 100".to_owned()) }
}
