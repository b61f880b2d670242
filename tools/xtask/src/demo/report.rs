//! The demonstration's report, for people.
//!
//! In: sessions and restores. Out: text on standard output.

use gantry_common::units::format_bytes;
use serde_json::Value;

use super::days::Day;
use super::images::Machine;

/// A row's name and how it reads its cell from a session.
type Row = (&'static str, fn(&Day) -> String);

const ROWS: [Row; 12] = [
    ("machines, disks", |day| {
        let total = |name| number(day, &["totals", name]);
        format!("{}, {}", total("vms_done"), total("disks"))
    }),
    ("processed", |day| bytes(day, &["totals", "processed_bytes"])),
    ("read", |day| bytes(day, &["totals", "read_bytes"])),
    ("unchanged", |day| skipped(day, "unchanged")),
    ("zero", |day| skipped(day, "zero")),
    ("duplicate", |day| skipped(day, "duplicate")),
    ("transferred", |day| bytes(day, &["totals", "transferred_bytes"])),
    ("stored", |day| bytes(day, &["totals", "stored_bytes"])),
    ("seconds", |day| format!("{:.1}", seconds(day))),
    ("bottleneck", bottleneck),
    ("result", |day| day.session["session"]["result"].as_str().unwrap_or("-").to_owned()),
    ("restored disks", |day| {
        let same = day.restores.iter().filter(|one| one.identical).count();
        format!("{same} of {} identical", day.restores.len())
    }),
];

/// Prints the table, and what happened.
pub fn print(machines: &[Machine], days: &[Day]) {
    println!("\nGantry demonstration: a simulated vCenter, gantryd, a repository, two proxies\n");
    for machine in machines {
        let rate = machine.writes_per_second;
        println!("  {:<10}{}; its guest writes {rate} times a second", machine.name, machine.what);
    }
    println!();
    print!("{:<20}", "");
    days.iter().for_each(|day| print!("{:>26}", day.kind));
    println!();
    for (name, cell) in ROWS {
        print!("{name:<20}");
        days.iter().for_each(|day| print!("{:>26}", cell(day)));
        println!();
    }
    for day in days.iter().filter(|day| !day.incidents.is_empty()) {
        println!("\n{}, from the session's log:", day.kind);
        day.incidents.iter().for_each(|line| println!("  {line}"));
    }
    for one in days.iter().flat_map(|day| &day.restores).filter(|one| !one.identical) {
        println!("\nDIFFERENT: a disk of {}, {}", one.machine, format_bytes(one.bytes));
    }
    println!();
}

fn at<'a>(day: &'a Day, path: &[&str]) -> &'a Value {
    path.iter().fold(&day.session["session"], |value, name| &value[*name])
}

fn number(day: &Day, path: &[&str]) -> u64 {
    at(day, path).as_u64().unwrap_or(0)
}

fn bytes(day: &Day, path: &[&str]) -> String {
    format_bytes(number(day, path))
}

fn skipped(day: &Day, reason: &str) -> String {
    bytes(day, &["totals", "more", "bytes_skipped", reason])
}

fn seconds(day: &Day) -> f64 {
    number(day, &["ended_ms"]).saturating_sub(number(day, &["created_ms"])) as f64 / 1e3
}

fn bottleneck(day: &Day) -> String {
    let more = at(day, &["totals", "more"]);
    let name = more["bottleneck"].as_str().unwrap_or("-");
    match more["bottleneck_percent"][name].as_f64() {
        Some(percent) => format!("{name} {percent:.0} %"),
        None => name.to_owned(),
    }
}
