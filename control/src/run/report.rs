//! What came of a run, for a person and for JSON.
//!
//! In: the run's document and its log. Out: a [`RunReport`] whose numbers are the sums of what the
//! movers of its disks told. Must not: count a disk that is not durable.

use gantry_common::ids::SessionId;
use serde::Serialize;
use serde_json::{Map, Value};

use super::document::{DiskTask, Outcome, RunDocument, RunState, TaskState};
use super::site::Severity;
use crate::transport::TransportMode;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunResult {
    /// As asked.
    Success,
    /// A point stands, and there is something to look at.
    Warning,
    /// No point was made.
    Failed,
}

/// A disk of a run.
#[derive(Debug, Clone, Serialize)]
pub struct RunDisk {
    /// Label.
    pub label: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// The transport mode that was used.
    pub transport: Option<TransportMode>,
    /// The proxy that copied it.
    pub proxy: Option<String>,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// The run.
    pub session: String,
    /// The machine.
    pub vm: String,
    /// How it ended.
    pub result: RunResult,
    /// The restore point.
    pub point: Option<String>,
    /// Why there is none.
    pub failure: Option<String>,
    /// Each disk.
    pub disks: Vec<RunDisk>,
    /// Choices and their reasons, warnings.
    pub log: Vec<String>,
    /// What deserves a look: a subset of the log.
    pub warnings: Vec<String>,
    /// The movers' numbers: bytes of all disks by what became of them, and each disk's report.
    pub mover: Option<Value>,
}

/// Lines of a run's log, in order.
pub type Log = [(Severity, Option<String>, String)];

/// Puts it together.
pub fn report(document: &RunDocument, log: &Log) -> RunReport {
    let outcome = match &document.state {
        RunState::Clearing { outcome } | RunState::Ended { outcome } => Some(outcome),
        _ => None,
    };
    let line = |(severity, disk, text): &(Severity, Option<String>, String)| {
        let disk = disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        let mark = match severity {
            Severity::Info => "",
            Severity::Warning => "warning: ",
            Severity::Error => "failed: ",
        };
        format!("{mark}{disk}{text}")
    };
    let warnings = log.iter().filter(|(severity, ..)| *severity == Severity::Warning);
    let warnings: Vec<String> = warnings.map(line).collect();
    let (result, point, failure) = match outcome {
        Some(Outcome::Point(point)) if warnings.is_empty() => {
            (RunResult::Success, Some(point.clone()), None)
        }
        Some(Outcome::Point(point)) => (RunResult::Warning, Some(point.clone()), None),
        Some(Outcome::Failed(failure)) => (RunResult::Failed, None, Some(failure.to_string())),
        Some(Outcome::Stopped(why)) => (RunResult::Failed, None, Some(why.clone())),
        None => (RunResult::Failed, None, Some("it has not ended".to_owned())),
    };
    let frozen = document.frozen.as_ref();
    let disks = frozen.map(|frozen| frozen.disks.as_slice()).unwrap_or_default();
    RunReport {
        session: document.run.to_string(),
        vm: document.vm_name.clone(),
        result,
        point,
        failure,
        disks: disks.iter().map(run_disk).collect(),
        log: log.iter().map(line).collect(),
        warnings,
        mover: frozen.map(|frozen| numbers(document.run, &frozen.name, disks)),
    }
}

fn run_disk(disk: &DiskTask) -> RunDisk {
    let (transport, proxy) = match &disk.state {
        TaskState::Held { proxy, mode, .. } => (Some(*mode), Some(proxy.clone())),
        _ => (None, None),
    };
    RunDisk { label: disk.label.clone(), size_bytes: disk.size_bytes, transport, proxy }
}

/// The sums of the disks' byte counts, and their reports.
fn numbers(run: SessionId, name: &str, disks: &[DiskTask]) -> Value {
    let mut sums = Map::new();
    let mut all = Vec::new();
    for report in disks.iter().filter_map(DiskTask::report) {
        for (field, value) in report.as_object().into_iter().flatten() {
            if let (true, Some(more)) = (field.starts_with("bytes_"), value.as_u64()) {
                let sum = sums.get(field).and_then(Value::as_u64).unwrap_or(0);
                sums.insert(field.clone(), sum.saturating_add(more).into());
            }
        }
        all.extend(report["disks"].as_array().into_iter().flatten().cloned());
    }
    sums.insert("session".into(), run.to_string().into());
    sums.insert("name".into(), name.into());
    sums.insert("disks".into(), all.into());
    Value::Object(sums)
}
