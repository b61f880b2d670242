//! The `zstd` program's own benchmark, on a file of the same blocks.
//!
//! In: a file, a level, a block size. Out: the speeds that it prints. One thread, one pass
//! (`-i0`), blocks compressed one by one (`-B`): the same work as Gantry's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::measure::Cost;

/// The program on this machine.
#[derive(Debug, Clone)]
pub(super) struct Program {
    version: String,
}

/// What a benchmark printed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speeds {
    /// Raw bytes for each stored byte.
    pub(super) ratio: f64,
    /// Raw bytes a second, compressing.
    pub(super) compress: f64,
    /// Raw bytes a second, decompressing.
    pub(super) decompress: f64,
}

impl Program {
    /// The program, if it is installed.
    pub(super) fn find() -> Option<Program> {
        let output = Command::new("zstd").arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        // "*** Zstandard CLI (64-bit) v1.5.4, by ..."
        let number = |word: &str| {
            word.strip_prefix('v')?.starts_with(|c: char| c.is_ascii_digit()).then_some(())
        };
        let version = text.split_whitespace().find(|word| number(word).is_some())?;
        Some(Program { version: version.trim_matches([',', 'v']).to_owned() })
    }

    /// For the table.
    pub(super) fn name(&self, level: i32) -> String {
        format!("zstd {} {}", self.version, level_options(level).join(" "))
    }

    /// Runs it.
    pub(super) fn benchmark(&self, file: &Path, level: i32, block_bytes: usize) -> Result<Speeds> {
        let mut command = Command::new("zstd");
        command.args(level_options(level)).args(["-i0", "-q", "--single-thread"]);
        command.arg(format!("-B{block_bytes}")).arg(file);
        let output = command.output().context("zstd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "zstd failed: {errors}");
        parse(&text).or_else(|| parse(&errors)).with_context(|| format!("zstd printed {text:?}"))
    }
}

fn level_options(level: i32) -> Vec<String> {
    match level {
        ..=-1 => vec!["-b".to_owned(), format!("--fast={}", -level)],
        _ => vec![format!("-b{level}"), format!("-e{level}")],
    }
}

/// Reads `-1   4263879 (4.691) 291.48 MB/s 1006.0 MB/s  file`.
fn parse(text: &str) -> Option<Speeds> {
    let line = text.lines().find(|line| line.matches("MB/s").count() == 2)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut speeds = words.windows(2).filter(|pair| pair[1].starts_with("MB/s"));
    let mut speed = || speeds.next()?[0].parse::<f64>().ok().filter(|speed| *speed > 0.0);
    let ratio = words.iter().find_map(|word| word.strip_prefix('(')?.strip_suffix(')'))?;
    Some(Speeds {
        ratio: ratio.trim_start_matches('x').parse().ok()?,
        compress: speed()? * 1e6,
        decompress: speed()? * 1e6,
    })
}

/// A speed as a cost; the program says nothing about CPU time.
pub(super) fn cost(bytes: u64, bytes_per_second: f64) -> Cost {
    let wall_seconds = bytes as f64 / bytes_per_second;
    Cost { bytes, wall_seconds, cpu_seconds: None, cpu_seconds_sender: None }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_terse_line_is_read() {
        let text = "bench 1.5.4 : input 20000000 bytes, 0 seconds, 1024 KB blocks\n\
                    -1      4263879 (4.691) 291.48 MB/s 1006.0 MB/s  zs.bin\n";
        let speeds = parse(text).unwrap();
        assert_eq!(speeds.ratio, 4.691);
        assert_eq!((speeds.compress, speeds.decompress), (291.48e6, 1006.0e6));
        assert_eq!(parse("zstd: no such file"), None);
    }
}
