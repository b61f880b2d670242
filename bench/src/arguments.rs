//! The command line of `gantry-bench`.
//!
//! In: arguments. Out: clap structures. Must not: give them a meaning.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gantry_common::units::{BlockSize, Compression, parse_bytes};

/// Measures Gantry's data plane: each stage beside its library, the whole beside its stages.
///
/// Only ratios of one run are claims: absolute figures do not travel between machines. Build with
/// --release, let nothing else run, and read docs/benchmarks.md for what each figure means.
#[derive(Debug, Parser)]
#[command(name = "gantry-bench", version, max_term_width = 100)]
pub struct Arguments {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Cost of each stage on an image's real blocks: read, scan, hash, compress, decompress, QUIC,
    /// TLS/TCP, pack write; each beside the library's own benchmark.
    Stages(StagesArguments),
    /// Full backup, both kinds of incremental and restore between two real mover processes, beside
    /// the sum of the stages.
    EndToEnd(Box<EndToEndArguments>),
    /// What opening, counting and collecting cost as a repository grows: synthetic repositories of
    /// so many blocks, whose index, maps and footers are real.
    Scale(ScaleArguments),
}

/// Which bytes are measured, and how long.
#[derive(Debug, Clone, Args)]
pub struct SampleArguments {
    /// Raw disk image or block device with real content; opened read-only.
    #[arg(long)]
    pub image: PathBuf,
    /// Block size: 256K, 512K, 1M or 4M.
    #[arg(long, default_value_t = BlockSize::default())]
    pub block_size: BlockSize,
    /// Seconds that one measurement of one stage may take, about.
    #[arg(long, default_value_t = 3.0, value_name = "N")]
    pub seconds_max: f64,
    /// Bytes of non-zero blocks, spread over the image, that are held in memory and worked on.
    #[arg(long, default_value = "512M", value_parser = parse_bytes, value_name = "BYTES")]
    pub sample: u64,
    /// How often each measurement is repeated; the medians are shown.
    #[arg(long, default_value_t = 3, value_name = "K")]
    pub runs: usize,
    /// Folder for what is written meanwhile, on the kind of disk a repository would have.
    /// Default: the system's folder for temporary files.
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `stages`.
#[derive(Debug, Clone, Args)]
pub struct StagesArguments {
    /// Bytes and time.
    #[command(flatten)]
    pub sample: SampleArguments,
    /// Only stages whose name holds this word (read, scan, hash, compress, quic, …).
    #[arg(long, value_name = "WORD")]
    pub only: Vec<String>,
}

/// Transport between the movers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// QUIC.
    Quic,
    /// TLS over TCP.
    Tcp,
}

impl Transport {
    /// As `gantry-mover --transport` and the stages call it.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Quic => "quic",
            Transport::Tcp => "tcp",
        }
    }
}

/// Arguments of `end-to-end`.
#[derive(Debug, Clone, Args)]
pub struct EndToEndArguments {
    /// Bytes and time.
    #[command(flatten)]
    pub sample: SampleArguments,
    /// Second version of the image, for the incrementals.
    #[arg(long, requires = "changed")]
    pub v2: Option<PathBuf>,
    /// JSON list of the extents that differ, as {"start":0,"length":65536}.
    #[arg(long, requires = "v2")]
    pub changed: Option<PathBuf>,
    /// Workers of the source mover. Default: the mover's own choice, one a core.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Transport between the movers.
    #[arg(long, value_enum, default_value_t = Transport::Quic)]
    pub transport: Transport,
    /// Compression: none, fast, optimal, high or extreme.
    #[arg(long, default_value_t = Compression::default())]
    pub compression: Compression,
    /// Drop the page cache before each phase (all of it as root, else that of the files in use).
    #[arg(long)]
    pub cold: bool,
    /// Leave repositories and restored disks in the work folder.
    #[arg(long)]
    pub keep: bool,
    /// The program to measure. Default: the gantry-mover beside this program.
    #[arg(long, value_name = "PATH")]
    pub mover: Option<PathBuf>,
    /// Take the stages' costs from this file, written by `stages --json` on this machine just
    /// before. Default: they are measured first.
    #[arg(long, value_name = "FILE")]
    pub stages: Option<PathBuf>,
}

/// Arguments of `scale`.
#[derive(Debug, Clone, Args)]
pub struct ScaleArguments {
    /// Blocks of each repository; 100000000 need about 20 GB and some minutes.
    #[arg(long, value_delimiter = ',', default_value = "1000000,10000000", value_name = "N,…")]
    pub blocks: Vec<u64>,
    /// Folder for the repositories. Default: the system's folder for temporary files.
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Leave the repositories in the work folder.
    #[arg(long)]
    pub keep: bool,
    /// The program to measure. Default: the gantry-mover beside this program.
    #[arg(long, value_name = "PATH")]
    pub mover: Option<PathBuf>,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
}
