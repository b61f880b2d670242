//! What the stages alone would cost, beside what the whole took.
//!
//! In: stage costs of the same run, samples. Out: [`Phase`]s. Pure. The sum counts each byte once
//! at each stage that it passes; what it leaves out (index, journal, map, manifests, scheduling)
//! is what the ratio is there to show.

use gantry_common::units::Compression;

use super::rounds::{BY_COMPARE, BY_EXTENTS, FULL, RESTORE, Sample};
use super::{Bytes, Expected, Part, Phase};
use crate::arguments::{EndToEndArguments, Transport};
use crate::machine::Machine;
use crate::measure::{Spread, WHOLE_BAR};
use crate::stages::{StagesReport, compress_name, decompress_name};

pub(super) fn phases(
    arguments: &EndToEndArguments,
    machine: &Machine,
    stages: &StagesReport,
    samples: &[Sample],
) -> Vec<Phase> {
    let mut phases = Vec::new();
    for name in [FULL, BY_EXTENTS, BY_COMPARE, RESTORE] {
        let of_phase: Vec<&Sample> = samples.iter().filter(|one| one.phase == name).collect();
        let Some(mut phase) = phase(name, &of_phase) else { continue };
        let (level, transport) = (arguments.compression, arguments.transport);
        let parts = match name {
            RESTORE => restore_parts(&phase.bytes, level, transport),
            _ => backup_parts(&phase.bytes, level, transport),
        };
        let wall = of_phase.iter().map(|sample| sample.wall_seconds);
        phase.expected = expected(&parts, stages, machine.cores, wall);
        if let Some(expected) = &mut phase.expected {
            expected.ratio_max = (name == FULL).then_some(WHOLE_BAR);
        }
        phases.push(phase);
    }
    phases
}

fn phase(name: &str, samples: &[&Sample]) -> Option<Phase> {
    let spread = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(|one| value(one)));
    let last = samples.last()?;
    Some(Phase {
        name: name.to_owned(),
        wall_seconds: spread(|sample| sample.wall_seconds)?,
        cpu_seconds_client: spread(|sample| sample.cpu_seconds_client)?,
        cpu_seconds_server: spread(|sample| sample.cpu_seconds_server)?,
        rss_bytes_client: samples.iter().map(|one| one.rss_bytes_client).max()?,
        rss_bytes_server: samples.iter().map(|one| one.rss_bytes_server).max()?,
        bytes: last.bytes,
        repository_bytes: last.repository_bytes,
        expected: None,
    })
}

type Parts = Vec<(String, u64)>;

/// Zero blocks are scanned to their end, others hardly; stored bytes get a checksum.
fn backup_parts(bytes: &Bytes, level: Compression, transport: Transport) -> Parts {
    vec![
        ("read".into(), bytes.read),
        ("scan zero".into(), bytes.read.saturating_sub(bytes.content)),
        ("scan data".into(), bytes.content),
        ("hash".into(), bytes.content),
        (compress_name(level), bytes.coded),
        ("checksum".into(), bytes.transferred),
        (transport.name().into(), bytes.transferred),
        ("write".into(), bytes.stored),
    ]
}

/// Packs are read and their checksums verified, blocks decompressed and their ids verified.
fn restore_parts(bytes: &Bytes, level: Compression, transport: Transport) -> Parts {
    vec![
        ("read".into(), bytes.read),
        ("checksum".into(), bytes.transferred),
        (transport.name().into(), bytes.transferred),
        (decompress_name(level), bytes.coded),
        ("hash".into(), bytes.content),
        ("write".into(), bytes.stored),
    ]
}

fn expected(
    parts: &[(String, u64)],
    stages: &StagesReport,
    cores: usize,
    wall: impl Iterator<Item = f64>,
) -> Option<Expected> {
    let part = |(stage, bytes): &(String, u64)| {
        let price = stages.stage(stage)?.gantry.cpu_seconds_per_gb?.median;
        let cpu_seconds = price * *bytes as f64 / 1e9;
        Some(Part { stage: stage.clone(), bytes: *bytes, cpu_seconds })
    };
    let parts: Vec<Part> = parts.iter().map(part).collect::<Option<_>>()?;
    let cpu_seconds: f64 = parts.iter().map(|part| part.cpu_seconds).sum();
    let wall_seconds = cpu_seconds / cores.max(1) as f64;
    let ratio = Spread::of(wall.map(|wall| wall / wall_seconds.max(1e-9)))?;
    Some(Expected { parts, cpu_seconds, wall_seconds, ratio, ratio_max: None })
}
