//! Arguments of `gantry-mover repo`.
//!
//! In: arguments. Out: clap structures.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use gantry_common::ids::PointId;
use gantry_common::units::Rate;

use super::AccessArguments;

/// Commands of `repo`.
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Make an empty repository in a new or empty folder.
    Init(FolderArguments),
    /// List all restore points.
    List(FolderArguments),
    /// Show one point in full.
    Show {
        /// Folder and form.
        #[command(flatten)]
        folder: FolderArguments,
        /// The point's id.
        point: PointId,
    },
    /// Read everything (or a part of it) and check it; name what is damaged.
    Verify(VerifyArguments),
    /// Give back the space of what no restore point needs; deleted points are gone for good then.
    Gc(GcArguments),
    /// Save what can be saved of a damaged repository that no mover serves: write damaged copies,
    /// headers and footers anew, let second copies serve, build lost maps again from records.
    /// Names what stays lost.
    Repair {
        /// Folder and form.
        #[command(flatten)]
        folder: FolderArguments,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Sizes, ratios and counts.
    Stat(RepoArguments),
    /// Build the index anew from the packs.
    RebuildIndex(FolderArguments),
}

/// A repository folder and the form of the answer.
#[derive(Debug, Args)]
pub struct FolderArguments {
    /// The repository's folder.
    pub dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A repository, here or elsewhere, and the form of the answer.
#[derive(Debug, Args)]
pub struct RepoArguments {
    /// The repository: a folder, or gantry://HOST:PORT of the mover that serves it.
    #[arg(value_name = "DIR|gantry://HOST:PORT")]
    pub repo: String,
    /// How to be let in.
    #[command(flatten)]
    pub access: AccessArguments,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `repo verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The repository.
    #[command(flatten)]
    pub repository: RepoArguments,
    /// Read only this share of the stored bytes, percent: the packs first that were read whole the
    /// longest ago.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub percent: u8,
    /// Compare the checksums of the stored bytes only, without decoding them: half the CPU.
    #[arg(long)]
    pub checksums_only: bool,
    /// Limit of the bytes read a second, such as 200MB/s.
    #[arg(long)]
    pub rate: Option<Rate>,
}

/// Arguments of `repo gc`.
#[derive(Debug, Args)]
pub struct GcArguments {
    /// The repository.
    #[command(flatten)]
    pub repository: RepoArguments,
    /// Only say what would be given back.
    #[arg(long)]
    pub dry_run: bool,
    /// Bytes of live records that may be copied to empty packs that are mostly dead, such as 10GiB.
    /// Default: a tenth of what is stored.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub rewrite_max: Option<u64>,
    /// Also give up the progress of interrupted backups that nobody works on; they then begin anew.
    #[arg(long)]
    pub abandon_unfinished: bool,
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    gantry_common::units::parse_bytes(text).map_err(|error| error.to_string())
}
