//! Arguments of `gantry-mover point`.
//!
//! In: arguments. Out: clap structures.

use clap::{Args, Subcommand};
use gantry_common::ids::PointId;

use super::{RepositoryArguments, RetentionArguments};

/// Commands of `point`.
#[derive(Debug, Subcommand)]
pub enum PointCommand {
    /// List the points of a VM, oldest first.
    List {
        /// The repository.
        #[command(flatten)]
        repository: RepositoryArguments,
        /// Name of the VM; all VMs without it.
        #[arg(long, default_value = "")]
        name: String,
        /// The deleted points, instead of those that are not.
        #[arg(long)]
        deleted: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Delete points: they are listed and restored no more, but can be brought back until the next
    /// `repo gc`, which frees their space.
    Delete {
        /// Which.
        #[command(flatten)]
        points: NamedPoints,
        /// Also if the VM then has no point left.
        #[arg(long)]
        last_too: bool,
    },
    /// Bring deleted points back.
    Undelete {
        /// Which.
        #[command(flatten)]
        points: NamedPoints,
        /// All of the VM that can still be brought back.
        #[arg(long, conflicts_with = "points")]
        all_deleted: bool,
    },
    /// Protect points from being deleted, by hand and by retention.
    Protect {
        /// Which.
        #[command(flatten)]
        points: NamedPoints,
        /// End the protection.
        #[arg(long)]
        off: bool,
    },
    /// Delete the points that no rule keeps, and say for each why it stays or goes.
    ///
    /// A point stays if any --keep rule keeps it. The newest point, protected ones and those that
    /// cannot be read always stay.
    Prune(PruneArguments),
}

/// Points of a VM.
#[derive(Debug, Clone, Args)]
pub struct NamedPoints {
    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArguments,
    /// Name of the VM.
    #[arg(long)]
    pub name: String,
    /// Id of a point, as `point list` shows it; may be given several times.
    #[arg(long = "point", value_name = "POINT", id = "points")]
    pub points: Vec<PointId>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `point prune`.
#[derive(Debug, Clone, Args)]
pub struct PruneArguments {
    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArguments,
    /// Name of the VM; all VMs without it.
    #[arg(long)]
    pub name: Option<String>,
    /// What to keep.
    #[command(flatten)]
    pub retention: RetentionArguments,
    /// Only say what would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
