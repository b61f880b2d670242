//! Reports for people.
//!
//! In: reports. Out: text. Must not: compute anything that the JSON does not have.

use std::fmt::Write;

use gantry_common::units::format_bytes;

use crate::end_to_end::EndToEndReport;
use crate::machine::Machine;
use crate::measure::{Spread, Stage, Way};
use crate::scale::ScaleReport;
use crate::stages::StagesReport;

fn machine(machine: &Machine) -> String {
    let Machine { cores, cpu, kernel, memory_bytes, load_before, version, .. } = machine;
    format!(
        "gantry-bench {version} on {cores} cores ({cpu}), kernel {kernel}, {}, load {load_before:.2} before\n",
        format_bytes(*memory_bytes)
    )
}

/// The table of `stages`.
pub(crate) fn stages(report: &StagesReport) -> String {
    let mut out = machine(&report.machine);
    let _ = writeln!(
        out,
        "{}: {} of non-zero blocks of {}, read {}; medians of {} runs (spread in brackets)\n",
        report.image.display(),
        format_bytes(report.sample_bytes),
        format_bytes(report.block_bytes.into()),
        report.read_mode,
        report.runs,
    );
    let _ = writeln!(
        out,
        "{:<19} {:<29} {:>21} {:>8} {:>15}  {:<21}",
        "stage", "way", "GB/s", "CPU s/GB", "sender+receiver", "ratio of Gantry to it"
    );
    for stage in &report.stages {
        stage_rows(&mut out, stage);
    }
    notes(&mut out, &report.notes);
    out
}

/// The table of `scale`.
pub(crate) fn scale(report: &ScaleReport) -> String {
    let mut out = machine(&report.machine);
    for size in &report.sizes {
        let _ = writeln!(
            out,
            "\n{} blocks in {} packs, {} map leaves, index {}; made in {:.1} s",
            size.blocks,
            size.packs,
            size.leaves,
            format_bytes(size.index_bytes),
            size.made_seconds
        );
        for step in &size.steps {
            let _ = writeln!(
                out,
                "  {:<24} {:>8.2} s {:>8.2} CPU s {:>12}  {}",
                step.name,
                step.wall_seconds,
                step.cpu_seconds,
                format_bytes(step.rss_bytes),
                step.said
            );
        }
    }
    notes(&mut out, &report.notes);
    out
}

fn notes(out: &mut String, notes: &[String]) {
    for note in notes {
        let _ = writeln!(out, "note: {note}");
    }
}

fn stage_rows(out: &mut String, stage: &Stage) {
    let ways = std::iter::once(&stage.gantry).chain(&stage.references);
    for (number, way) in ways.enumerate() {
        let name = if number == 0 { stage.name.as_str() } else { "" };
        let bar = stage.ratio_max.filter(|_| number == 1);
        let _ = writeln!(out, "{name:<19} {}", way_row(way, bar, stage.within_bar));
    }
}

fn way_row(way: &Way, bar: Option<f64>, within: Option<bool>) -> String {
    let cpu = way.cpu_seconds_per_gb.map_or("-".into(), |cpu| format!("{:.3}", cpu.median));
    let ends = way.cpu_seconds_per_gb.zip(way.cpu_seconds_per_gb_sender);
    let ends = ends.map_or(String::new(), |(both, sender)| {
        format!("{:.3}+{:.3}", sender.median, both.median - sender.median)
    });
    let mut ratio = way.ratio.map_or(String::new(), |ratio| spread(&ratio));
    if let Some(bar) = bar {
        let verdict = if within == Some(true) { "within" } else { "BEYOND" };
        let _ = write!(ratio, " {verdict} {bar}");
    }
    let note = way.note.as_deref().unwrap_or("");
    let speed = spread(&way.gb_per_second);
    let row = format!("{:<29} {speed:>21} {cpu:>8} {ends:>15}  {ratio} {note}", way.name);
    row.trim_end().to_owned()
}

/// `1.23 [1.20–1.30]`
fn spread(spread: &Spread) -> String {
    let Spread { median, min, max } = spread;
    let digits = if *max < 1000.0 { 2 } else { 0 };
    format!("{median:.digits$} [{min:.digits$}–{max:.digits$}]")
}

/// The table of `end-to-end`.
pub(crate) fn end_to_end(report: &EndToEndReport) -> String {
    let mut out = machine(&report.machine);
    let _ = writeln!(
        out,
        "{}: {} {}, workers {}, {}; medians of {} runs (spread in brackets)\n",
        report.image.display(),
        report.transport,
        report.compression,
        report.workers.map_or("by itself".to_owned(), |workers| workers.to_string()),
        report.cache,
        report.runs,
    );
    for phase in &report.phases {
        let _ = writeln!(out, "{}", phase.name);
        let _ = writeln!(out, "  wall s                  {}", spread(&phase.wall_seconds));
        let _ = writeln!(out, "  CPU s, client           {}", spread(&phase.cpu_seconds_client));
        let _ = writeln!(out, "  CPU s, repository       {}", spread(&phase.cpu_seconds_server));
        let _ = writeln!(
            out,
            "  peak memory             client {}, repository {}",
            format_bytes(phase.rss_bytes_client),
            format_bytes(phase.rss_bytes_server),
        );
        let _ = writeln!(
            out,
            "  bytes                   read {}, with content {}, transferred {}, stored {}; repository {}",
            format_bytes(phase.bytes.read),
            format_bytes(phase.bytes.content),
            format_bytes(phase.bytes.transferred),
            format_bytes(phase.bytes.stored),
            format_bytes(phase.repository_bytes),
        );
        let Some(expected) = &phase.expected else { continue };
        for part in &expected.parts {
            let text = format!("{} of {}", part.stage, format_bytes(part.bytes));
            let _ = writeln!(out, "    {text:<32} {:>8.2} CPU s", part.cpu_seconds);
        }
        let _ = writeln!(
            out,
            "  sum of stages {:.2} CPU s / {} cores = {:.2} s; wall is {} of it{}",
            expected.cpu_seconds,
            report.machine.cores,
            expected.wall_seconds,
            spread(&expected.ratio),
            expected.ratio_max.map_or(String::new(), |max| {
                let verdict = if expected.ratio.median <= max { "within" } else { "BEYOND" };
                format!(", {verdict} {max}")
            }),
        );
    }
    if !report.stages.stages.is_empty() {
        let _ = writeln!(out, "\nstages");
        report.stages.stages.iter().for_each(|stage| stage_rows(&mut out, stage));
    }
    notes(&mut out, &report.notes);
    out
}
