//! `gantry-mover repo`: what looks at a folder itself; the rest is beside it.

use std::path::Path;

use gantry_common::failure::Failure;
use serde::Serialize;
use serde_json::{Value, json};

use super::arguments::{FolderArguments, RepoCommand};
use super::point::{as_json, point_lines};
use super::{gc, repair, say, say_json, stat, usage, verify};
use crate::host::now_ms;
use crate::store::admin::{self, PointLine};
use crate::store::reader::StoreReader;
use crate::store::storage::kernel::KernelStorage;

pub(super) fn run(command: RepoCommand) -> Result<(), Failure> {
    match command {
        RepoCommand::Init(folder) => {
            let made = admin::init(&folder.dir, now_ms())?;
            let text = format!("repository {} made in {}", made.repository, made.place);
            show(&folder, &made, &[text])
        }
        RepoCommand::List(folder) => list(&folder),
        RepoCommand::Show { folder, point } => {
            let reader = open(&folder.dir)?;
            let name = admin::list(&reader, None)?
                .into_iter()
                .find(|line| line.point == point.to_string())
                .map(|line| line.name)
                .ok_or_else(|| {
                    usage(format!("no restore point {point} in {}", folder.dir.display()))
                })?;
            let manifest = admin::show(&reader, &name, Some(point))?;
            say_json(&with_readable_config(json!(manifest), &manifest.vm_config))
        }
        RepoCommand::Verify(arguments) => verify::run(&arguments),
        RepoCommand::Gc(arguments) => gc::run(&arguments),
        RepoCommand::Repair { folder, dry_run } => repair::run(&folder, dry_run),
        RepoCommand::Stat(arguments) => stat::run(&arguments),
        RepoCommand::RebuildIndex(folder) => {
            let rebuilt = admin::rebuild_index(KernelStorage::new(&folder.dir))?;
            let text =
                format!("index built anew: {} packs, {} blocks", rebuilt.packs, rebuilt.blocks);
            let mut lines = vec![text];
            lines.extend(rebuilt.notes.iter().map(|note| format!("  - {note}")));
            show(&folder, &rebuilt, &lines)
        }
    }
}

/// A machine's configuration is stored as JSON text: shown as what it says, not as bytes.
fn with_readable_config(mut point: Value, config: &[u8]) -> Value {
    if let Ok(readable) = serde_json::from_slice::<Value>(config) {
        point["vm_config"] = readable;
    }
    point
}

/// Opens for reading only; says on standard error what was noticed.
fn open(dir: &Path) -> Result<StoreReader, Failure> {
    let (reader, notes) = StoreReader::open(KernelStorage::new(dir))?;
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    Ok(reader)
}

fn show(folder: &FolderArguments, value: &impl Serialize, lines: &[String]) -> Result<(), Failure> {
    if folder.json {
        return say_json(value);
    }
    lines.iter().for_each(|line| say(line));
    Ok(())
}

fn list(folder: &FolderArguments) -> Result<(), Failure> {
    let points = admin::list(&open(&folder.dir)?, None)?;
    let mut lines = Vec::new();
    let mut values = Vec::new();
    for point in &points {
        values.push(line_as_json(point));
        match (&point.summary, &point.unreadable) {
            (Some(summary), _) => lines.extend(point_lines(summary)),
            (None, why) => {
                let why = why.as_deref().unwrap_or("it cannot be read");
                lines.push(format!("{} {}: UNREADABLE: {why}", point.point, point.name));
            }
        }
    }
    show(folder, &values, &lines)
}

fn line_as_json(line: &PointLine) -> Value {
    let mut value = match &line.summary {
        Some(summary) => as_json(summary),
        None => json!({ "point": line.point, "name": line.name }),
    };
    value["bytes_stored"] = json!(line.bytes_stored);
    value["unreadable"] = json!(line.unreadable);
    value
}
