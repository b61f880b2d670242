//! The rounds: every phase with real processes, again and again.
//!
//! In: images, the program, a folder. Out: [`Sample`]s. Invariant: a restored disk is compared
//! before its round counts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Bytes;
use super::disks::{bytes_on_disk, copy, drop_page_cache, ensure_same, files};
use super::mover::{Movers, Server};
use crate::arguments::EndToEndArguments;
use crate::process::{self, Finished};

/// Phases, in the order of a round.
pub(super) const FULL: &str = "full";
pub(super) const BY_EXTENTS: &str = "incremental by extents";
pub(super) const BY_COMPARE: &str = "incremental by compare";
pub(super) const RESTORE: &str = "restore";

/// One phase of one round.
pub(super) struct Sample {
    pub(super) phase: &'static str,
    pub(super) wall_seconds: f64,
    pub(super) cpu_seconds_client: f64,
    pub(super) cpu_seconds_server: f64,
    pub(super) rss_bytes_client: u64,
    pub(super) rss_bytes_server: u64,
    pub(super) bytes: Bytes,
    pub(super) repository_bytes: u64,
}

struct Rounds<'a> {
    arguments: &'a EndToEndArguments,
    movers: Movers,
    folder: &'a Path,
    samples: Vec<Sample>,
}

pub(super) fn run(
    arguments: &EndToEndArguments,
    program: &Path,
    folder: &Path,
) -> Result<Vec<Sample>> {
    let movers = Movers::new(program, folder, arguments)?;
    let mut rounds = Rounds { arguments, movers, folder, samples: Vec::new() };
    for round in 0..arguments.sample.runs {
        eprintln!("round {} of {}", round + 1, arguments.sample.runs);
        rounds.round(round).with_context(|| format!("round {}", round + 1))?;
    }
    Ok(rounds.samples)
}

impl Rounds<'_> {
    fn round(&mut self, round: usize) -> Result<()> {
        let image = &self.arguments.sample.image;
        let repository = self.folder.join(format!("repository-{round}"));
        self.movers.init(&repository)?;
        let server = self.movers.serve(&repository)?;
        let full = self.backup(FULL, &server, &repository, image, &["--full"])?;
        let Some((v2, changed)) = self.arguments.v2.as_ref().zip(self.arguments.changed.as_ref())
        else {
            self.restore(&server, &repository, image)?;
            server.stop()?;
            return self.clear(&[repository]);
        };
        server.stop()?;
        let twin = self.folder.join(format!("repository-{round}-compare"));
        copy(&repository, &twin)?;
        let base = full.json["point"].as_str().context("the backup names no point")?;
        let changed = changed.display().to_string();
        let extents = ["--base", base, "--changed-extents", changed.as_str()];
        for (phase, repository, more) in
            [(BY_EXTENTS, &repository, &extents[..]), (BY_COMPARE, &twin, &[])]
        {
            let server = self.movers.serve(repository)?;
            self.backup(phase, &server, repository, v2, more)?;
            self.restore(&server, repository, v2)?;
            server.stop()?;
        }
        self.clear(&[repository, twin])
    }

    fn backup(
        &mut self,
        phase: &'static str,
        server: &Server,
        repository: &Path,
        source: &Path,
        more: &[&str],
    ) -> Result<Finished> {
        let (movers, arguments) = (&self.movers, self.arguments);
        let work = || movers.backup(server, source, arguments, more);
        let watched = watch(arguments, server, repository, source, work);
        let (finished, mut sample) = watched.with_context(|| phase)?;
        let count = |key: &str| number(&finished.json, key);
        // Blocks beside the changed extents are not read, those within holes neither.
        let content = count("bytes_virtual").saturating_sub(count("bytes_zero"));
        let content = content.min(count("bytes_read"));
        let same = count("bytes_duplicate");
        let coded = match finished.json.get("bytes_sent_raw") {
            Some(sent) => sent.as_u64().unwrap_or(0),
            None => content.saturating_sub(same),
        };
        sample.bytes = Bytes {
            read: count("bytes_read"),
            content,
            coded,
            transferred: count("bytes_transferred"),
            stored: count("bytes_stored"),
        };
        sample.phase = phase;
        self.samples.push(sample);
        Ok(finished)
    }

    fn restore(&mut self, server: &Server, repository: &Path, wanted: &Path) -> Result<()> {
        let to = self.folder.join("restored.raw");
        let (movers, arguments) = (&self.movers, self.arguments);
        let work = || movers.restore(server, &to);
        let watched = watch(arguments, server, repository, wanted, work);
        let (finished, mut sample) = watched.context(RESTORE)?;
        let count = |key: &str| number(&finished.json, key);
        let content = count("bytes_virtual").saturating_sub(count("bytes_zero"));
        sample.bytes = Bytes {
            read: count("bytes_transferred"),
            content,
            coded: content,
            transferred: count("bytes_transferred"),
            stored: count("bytes_written"),
        };
        self.samples.push(sample);
        ensure_same(wanted, &to)?;
        if !arguments.keep {
            std::fs::remove_file(&to)?;
        } else {
            std::fs::rename(&to, to.with_extension(format!("{}.raw", self.samples.len())))?;
        }
        Ok(())
    }

    fn clear(&self, repositories: &[PathBuf]) -> Result<()> {
        if !self.arguments.keep {
            repositories.iter().try_for_each(std::fs::remove_dir_all)?;
        }
        Ok(())
    }
}

/// Runs a client's work and looks at the server before and after.
fn watch(
    arguments: &EndToEndArguments,
    server: &Server,
    repository: &Path,
    disk: &Path,
    work: impl FnOnce() -> Result<Finished>,
) -> Result<(Finished, Sample)> {
    if arguments.cold {
        let mut cached = files(repository)?;
        cached.push(disk.to_owned());
        drop_page_cache(&cached);
    } else {
        // What an earlier phase left to write must not be written during this one.
        rustix::fs::sync();
    }
    process::reset_peak(server.pid());
    let before = process::cpu_seconds(server.pid())?;
    let finished = work()?;
    let sample = Sample {
        phase: RESTORE,
        wall_seconds: finished.wall_seconds,
        cpu_seconds_client: finished.cpu_seconds,
        cpu_seconds_server: process::cpu_seconds(server.pid())? - before,
        rss_bytes_client: number(&finished.json, "peak_rss_bytes"),
        rss_bytes_server: process::peak_rss_bytes(server.pid()),
        bytes: Bytes::default(),
        repository_bytes: bytes_on_disk(repository)?,
    };
    Ok((finished, sample))
}

fn number(json: &Value, key: &str) -> u64 {
    json.get(key).and_then(Value::as_u64).unwrap_or(0)
}
