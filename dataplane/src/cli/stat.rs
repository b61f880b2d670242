//! `gantry-mover repo stat`.

use gantry_common::failure::Failure;
use gantry_common::manage::{ManageReport, ManageRequest, StatReport};
use gantry_common::units::format_bytes;
use serde_json::json;

use super::arguments::RepoArguments;
use super::job::{ask_repo, unexpected};
use super::point::when;
use super::{Use, say, say_json};

pub(super) fn run(arguments: &RepoArguments) -> Result<(), Failure> {
    let ManageReport::Stat(stat) = ask_repo(arguments, Use::Read, ManageRequest::Stat)? else {
        return Err(unexpected());
    };
    if arguments.json {
        let mut value = json!(stat);
        value["dedup_ratio"] = json!(ratio(stat.bytes_content, stat.bytes_raw));
        value["compression_ratio"] = json!(ratio(stat.bytes_raw, stat.bytes_stored));
        return say_json(&value);
    }
    lines(&stat).iter().for_each(|line| say(line));
    Ok(())
}

fn ratio(of: u64, to: u64) -> f64 {
    if to == 0 { 0.0 } else { (of as f64 / to as f64 * 100.0).round() / 100.0 }
}

fn lines(stat: &StatReport) -> Vec<String> {
    let mut lines = vec![
        format!("repository {}", stat.repository),
        format!(
            "  {} points of {} VMs ({} protected), {} of disks",
            stat.points,
            stat.names,
            stat.points_protected,
            format_bytes(stat.bytes_protected)
        ),
        format!("  {} packs, {} blocks, {} map nodes", stat.packs, stat.blocks, stat.nodes),
        format!(
            "  {} stored, {} raw: compression {:.2}; content of all points {}: dedup {:.2}; {} free",
            format_bytes(stat.bytes_stored),
            format_bytes(stat.bytes_raw),
            ratio(stat.bytes_raw, stat.bytes_stored),
            format_bytes(stat.bytes_content),
            ratio(stat.bytes_content, stat.bytes_raw),
            format_bytes(stat.bytes_free),
        ),
        format!(
            "  garbage: {} deleted points (their runs added {}), {} left by the last collection{}",
            stat.points_deleted,
            format_bytes(stat.bytes_deleted),
            format_bytes(stat.bytes_dead_left),
            match stat.collected_ms {
                0 => String::new(),
                ms => format!(" at {}", when(ms)),
            },
        ),
        verified_line(stat),
    ];
    lines.extend(stat.unfinished.iter().map(|one| {
        format!(
            "  unfinished: {} since {}, {} disks (session {}): keeps what it refers to",
            one.name,
            when(one.created_ms),
            one.disks,
            one.session
        )
    }));
    lines.extend(stat.notes.iter().map(|note| format!("  - {note}")));
    lines
}

fn verified_line(stat: &StatReport) -> String {
    let suspect = if stat.suspect { "; damage is known or possible: run repo verify" } else { "" };
    let unchecked = match stat.packs_unchecked {
        0 => String::new(),
        packs => format!(", {packs} packs never"),
    };
    match (stat.checked_oldest_ms, stat.checked_newest_ms) {
        (0, _) => format!("  verified: never{suspect}"),
        (oldest, newest) => {
            format!("  verified: {} to {}{unchecked}{suspect}", when(oldest), when(newest))
        }
    }
}
