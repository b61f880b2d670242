//! The demonstration's report, for people.
//!
//! In: figures of three backups and their restores. Out: text on standard output.

use gantry_common::units::format_bytes;

use super::mover::{BackupFigures, Bottleneck};

/// One backup and the restore of its point.
pub struct Line {
    /// What kind of backup.
    pub kind: &'static str,
    /// What it said.
    pub figures: BackupFigures,
    /// Seconds that the restore took.
    pub restore_seconds: f64,
    /// Whether the restored disk is the one that was backed up, bit for bit.
    pub identical: bool,
}

/// A row's name and how it reads its cell.
type Row = (&'static str, fn(&Line) -> String);

const ROWS: [Row; 15] = [
    ("processed", |line| format_bytes(line.figures.bytes_processed)),
    ("read", |line| format_bytes(line.figures.bytes_read)),
    ("zero", |line| format_bytes(line.figures.bytes_zero)),
    ("unchanged", |line| format_bytes(line.figures.bytes_unchanged)),
    ("duplicate", |line| format_bytes(line.figures.bytes_duplicate)),
    ("transferred", |line| format_bytes(line.figures.bytes_transferred)),
    ("stored", |line| format_bytes(line.figures.bytes_stored)),
    ("seconds", |line| format!("{:.2}", line.figures.wall_seconds)),
    ("rate (processed)", |line| rate(line.figures.bytes_processed, line.figures.wall_seconds)),
    ("CPU seconds", |line| format!("{:.2}", line.figures.cpu_seconds)),
    ("peak memory", |line| format_bytes(line.figures.peak_rss_bytes)),
    ("bottleneck", |line| bottleneck(&line.figures.bottleneck)),
    ("restore seconds", |line| format!("{:.2}", line.restore_seconds)),
    ("restored disk", |line| verdict(line.identical).to_owned()),
    ("restore point", |line| line.figures.point.chars().take(18).collect()),
];

/// Prints the table.
pub fn print(disk: &str, lines: &[Line]) {
    println!("\nGantry demonstration: {disk}, over QUIC between two processes\n");
    print!("{:<18}", "");
    lines.iter().for_each(|line| print!("{:>20}", line.kind));
    println!();
    for (name, cell) in ROWS {
        print!("{name:<18}");
        lines.iter().for_each(|line| print!("{:>20}", cell(line)));
        println!();
    }
    println!();
}

fn verdict(identical: bool) -> &'static str {
    if identical { "identical" } else { "DIFFERENT" }
}

fn rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "-".to_owned();
    }
    format!("{}/s", format_bytes((bytes as f64 / seconds) as u64))
}

/// The largest share.
fn bottleneck(shares: &Bottleneck) -> String {
    let named = [
        ("source", shares.source),
        ("proxy", shares.proxy),
        ("network", shares.network),
        ("target", shares.target),
    ];
    let largest = named.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    largest.map_or_else(String::new, |(name, share)| format!("{name} {share:.0} %"))
}

#[cfg(test)]
mod tests {
    use super::{bottleneck, rate};
    use crate::demo::mover::Bottleneck;

    #[test]
    fn cells_name_the_largest_share_and_survive_no_time() {
        let shares = Bottleneck { source: 10.0, proxy: 60.4, network: 20.0, target: 9.6 };
        assert_eq!(bottleneck(&shares), "proxy 60 %");
        assert_eq!(rate(5, 0.0), "-");
        assert_eq!(rate(3 << 20, 2.0), "1.50 MiB/s");
    }
}
