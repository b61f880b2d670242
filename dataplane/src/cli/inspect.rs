//! `gantry-mover inspect`: what a disk holds, and what filters would leave out of a backup.
//!
//! In: a source. Out: partitions, volumes, file systems, their state, bytes by reason, and why a filter is
//! off. Must not: write.

use gantry_common::failure::Failure;
use gantry_common::source::SourceSpec;
use gantry_common::units::format_bytes;
use gantry_guest::filter_map::{FilterOptions, Inspection, inspect_disk};
use gantry_guest::masks::Masks;
use gantry_guest::{Consistency, FileMasks};
use serde_json::json;

use super::arguments::InspectArguments;
use super::{say, say_json, usage};
use crate::disk::Disk;
use crate::disk::random::RandomReads;
use crate::filters::{in_words, plain, reason_name, refusal_in_words};
use crate::transport::read_secret;

/// Files that are listed for a person.
const FILES_SHOWN: usize = 40;

pub(super) fn run(arguments: &InspectArguments) -> Result<(), Failure> {
    let spec = spec(arguments)?;
    let masks = match arguments.exclude_files.as_slice() {
        [] => None,
        some => Some(Masks::parse(some).map_err(usage)?),
    };
    let options = FilterOptions {
        excluded: masks.as_ref().map(|masks| masks as &dyn FileMasks),
        ..FilterOptions::default()
    };
    let snapshot = arguments.state.kind();
    let disk = Disk::open_source(&spec)?;
    let reads = RandomReads::new(&disk)?;
    let found = inspect_disk(&reads, &options, snapshot);
    if arguments.json {
        let mut value = json!(found);
        value["source"] = json!(disk.label());
        value["disk_bytes"] = json!(disk.size_bytes());
        value["bytes"] = json!(found.map.bytes_by_reason());
        return say_json(&value);
    }
    lines(&disk, &found).iter().for_each(|line| say(line));
    Ok(())
}

fn spec(arguments: &InspectArguments) -> Result<SourceSpec, Failure> {
    if let Some(file) = &arguments.source_spec {
        let text = read_secret(file)?;
        return serde_json::from_slice(&text)
            .map_err(|error| usage(format!("{}: {error}", file.display())));
    }
    let text = arguments.source.as_deref().unwrap_or_default();
    Ok(match SourceSpec::parse(text).map_err(usage)? {
        SourceSpec::Path { path, .. } => SourceSpec::Path { path, format: arguments.source_format },
        other => other,
    })
}

fn state(consistency: &Consistency) -> String {
    match consistency {
        Consistency::Clean => "clean".to_owned(),
        Consistency::Quiesced => "quiesced".to_owned(),
        Consistency::Replayable => "to be replayed from its journal".to_owned(),
        Consistency::Unsafe(why) => format!("not to be relied on ({why})"),
    }
}

/// For a person; names come from a guest's disk.
fn lines(disk: &Disk, found: &Inspection) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: {}, partition table: {}",
        disk.label(),
        format_bytes(disk.size_bytes()),
        found.table
    )];
    for volume in &found.volumes {
        let identity = volume.identity.as_deref().map(|text| format!(" {}", plain(text)));
        let state = volume.consistency.as_ref().map(|held| format!("; {}", state(held)));
        lines.push(format!(
            "  {}: {}, {}{}{}; left out: {}",
            plain(&volume.place),
            format_bytes(volume.length),
            volume.holds,
            identity.unwrap_or_default(),
            state.unwrap_or_default(),
            in_words(&volume.bytes)
        ));
    }
    for refused in &found.map.refused {
        lines.push(format!("  {}", refusal_in_words(refused)));
    }
    for file in found.files.iter().take(FILES_SHOWN) {
        let (path, volume) = (plain(&file.path), plain(&file.volume));
        let bytes = format_bytes(file.bytes);
        lines.push(format!("  {}: {path} of {volume}, {bytes}", reason_name(file.reason)));
    }
    let more = found.files.len().saturating_sub(FILES_SHOWN) as u64 + found.files_more;
    if more > 0 {
        lines.push(format!("  and {more} more files"));
    }
    if found.map.dropped.ranges > 0 {
        let dropped = found.map.dropped;
        let bytes = format_bytes(dropped.bytes);
        lines.push(format!("  {} ranges more, {bytes}, are too many to keep", dropped.ranges));
    }
    lines.push(format!(
        "  in all: {}; {} were read to know it",
        in_words(&found.map.bytes_by_reason()),
        format_bytes(found.read_bytes)
    ));
    lines
}
