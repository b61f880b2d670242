//! `cargo xtask`: the commands that a developer or a newcomer types.
//!
//! In: a command line. Out: a finished piece of work and its exit code. Each command finds out by
//! itself what the machine lacks, installs it where it may, and names it where it may not.
//! Nothing here is part of Gantry's programs.

mod cleanup;
mod corpus;
mod crash;
mod demo;
mod fuzz;
mod packages;
mod shell;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Developer commands of Gantry")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints, tests, doc-tests: everything that continuous integration asks for.
    Test {
        /// Only tests whose name holds this text.
        #[arg(long)]
        filter: Option<String>,
    },
    /// The whole product on a simulated vCenter: full, incremental, a killed proxy, restores compared.
    Demo {
        /// Use the programs of this folder instead of building them.
        #[arg(long, value_name = "FOLDER")]
        programs: Option<PathBuf>,
    },
    /// Run the random scenarios (kills, networks, damage, hostile peers) with many seeds.
    Soak {
        /// Seeds of each.
        #[arg(long, default_value_t = 20)]
        seeds: u64,
    },
    /// Make a golden repository with the program as it is, once for each change of the format.
    Golden {
        /// Its name, such as format-1-first.
        name: String,
    },
    /// The store on a simulated disk: power cuts and kills at any operation, from many seeds.
    Crash {
        /// Seeds.
        #[arg(long, default_value_t = 10_000)]
        runs: u64,
        /// Threads (default: one a core).
        #[arg(long)]
        threads: Option<u64>,
    },
    /// Plant bugs in a copy of the store, and see whether the crash suite catches each.
    Planted {
        /// Only bugs whose name holds this text.
        #[arg(long)]
        filter: Option<String>,
        /// Seeds at the most.
        #[arg(long, default_value_t = 4_000)]
        runs: u64,
    },
    /// The REST API against schemathesis: without a token and as viewer, operator, administrator.
    FuzzApi {
        /// How long, over all passes.
        #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(60..))]
        seconds: u64,
        /// Seed of what is sent (default: drawn and printed).
        #[arg(long)]
        seed: Option<u32>,
        /// Use the programs of this folder instead of building them.
        #[arg(long, value_name = "FOLDER")]
        programs: Option<PathBuf>,
    },
    /// Build disk images with real content, in two versions each.
    Corpus {
        /// Which images.
        #[arg(long, value_enum, default_value = "small")]
        size: corpus::Size,
        /// Where (default: target/corpus/SIZE).
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Seed of every random choice.
        #[arg(long, default_value_t = corpus::SEED)]
        seed: u64,
        /// Keep second versions as differences; call again without this to make them whole.
        #[arg(long)]
        compact: bool,
    },
    /// The process whose memory goes to swap while an image is built.
    #[command(hide = true)]
    HoldMemory {
        /// Control group to join.
        group: PathBuf,
        /// Bytes to hold.
        bytes: u64,
        /// Seed of the choice of pages.
        seed: u64,
    },
    /// Install (as root) or name what the other commands need.
    Setup,
}

/// The repository's root: where every child process runs.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}

/// Whether we may mount, attach loop devices and install packages.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Test { filter } => suite::test(filter.as_deref()),
        Command::Soak { seeds } => suite::soak(seeds),
        Command::Golden { name } => suite::golden(&name),
        Command::Crash { runs, threads } => crash::run(runs, threads),
        Command::Planted { filter, runs } => crash::planted(filter.as_deref(), runs),
        Command::Demo { programs } => demo::run(programs),
        Command::FuzzApi { seconds, seed, programs } => fuzz::run(seconds, seed, programs),
        Command::Corpus { size, dir, seed, compact } => {
            let request = corpus::Request { size, folder: dir, seed, compact };
            corpus::build(&request).map(drop)
        }
        Command::HoldMemory { group, bytes, seed } => {
            corpus::swap::hold_memory(&group, bytes, seed)
        }
        Command::Setup => packages::ensure(packages::Task::Test),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cleanup::on_signals();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cleanup::checkpoint();
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
