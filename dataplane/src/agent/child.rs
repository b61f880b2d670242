//! One task's process: `gantry-mover work`, a child whose standard input is its lifeline.
//!
//! In: the work's JSON, orders (a rate, the end). Out: progress as it comes, then how the task ended.
//! Invariants: the child does not outlive this process; a line of its output is bounded; a child that is
//! told to end and does not is killed. Must not: understand the work or the report.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use gantry_common::control::TaskOutcome;
use gantry_common::work::{DiskProgress, WorkReport};
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;

use super::standing::OUTCOME_BYTES_MAX;

/// How long a child that was told to end may take before it is killed.
const END_WITHIN: Duration = Duration::from_secs(30);

/// How long a child may take from its last word to its end.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// What a running task has been told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// A limit of its rate in bytes a second, or none; nothing: as its work says.
    pub(super) rate: Option<Option<u64>>,
    /// To end, and why.
    pub(super) end: Option<End>,
}

/// Why a task is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was stopped by gantryd.
    Stopped,
    /// The mover itself stops.
    MoverStops,
}

/// Runs the program to its end.
pub(super) async fn run(
    (program, identity): (PathBuf, PathBuf),
    work: Vec<u8>,
    mut orders: watch::Receiver<Orders>,
    mut on_progress: impl FnMut(Vec<DiskProgress>),
) -> TaskOutcome {
    let mut child = match spawn(&program, &identity) {
        Ok(child) => child,
        Err(error) => {
            return TaskOutcome::Died(format!("starting {} failed: {error}", program.display()));
        }
    };
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
        return TaskOutcome::Died("the task's process has no standard input and output".into());
    };
    let feeding = feed(stdin, work, orders.clone());
    let listening = listen(BufReader::new(stdout), &mut on_progress);
    let mut feeding = std::pin::pin!(feeding);
    let mut listening = std::pin::pin!(listening);
    let mut fed = false;
    let told = loop {
        tokio::select! {
            told = &mut listening => break told,
            () = &mut feeding, if !fed => fed = true,
            () = too_long(&mut orders) => break Err("it did not end when it was told to".into()),
        }
    };
    let mut status = None;
    if told.is_ok() {
        // It has said its last word: what it does now is its own end.
        status = tokio::time::timeout(LAST_STEPS, child.wait()).await.ok();
    }
    let status = match status {
        Some(status) => status,
        None => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let ended = orders.borrow().end;
    outcome(told, ended, status)
}

fn spawn(program: &Path, identity: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args(["work", "--identity"]).arg(identity);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn()
}

/// Ends when an order to end has been given for longer than is allowed.
async fn too_long(orders: &mut watch::Receiver<Orders>) {
    // Without a sender there is nobody who could order anything.
    if orders.wait_for(|orders| orders.end.is_some()).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(END_WITHIN).await;
}

/// Gives the work, then rates as they come; the child ends when its standard input does.
async fn feed(mut stdin: ChildStdin, mut work: Vec<u8>, mut orders: watch::Receiver<Orders>) {
    // Between the tokens of JSON a line's end means what a space does, and within them there is none.
    work.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    work.push(b'\n');
    let mut rate = None;
    let mut line = work;
    loop {
        // A child that does not listen has ended or will be killed: its output tells.
        if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
        let is_new = |orders: &Orders| orders.end.is_some() || orders.rate != rate;
        let Ok(next) = orders.wait_for(is_new).await.map(|orders| orders.clone()) else { return };
        if next.end.is_some() {
            return;
        }
        rate = next.rate;
        line = format!("{}\n", serde_json::json!({ "set_rate": rate.flatten() })).into_bytes();
    }
}

/// Takes the child's lines in; how it says that it ended, if it does.
async fn listen(
    mut stdout: BufReader<ChildStdout>,
    on_progress: &mut impl FnMut(Vec<DiskProgress>),
) -> Result<Option<TaskOutcome>, String> {
    let mut line = Vec::new();
    let mut told = None;
    loop {
        line.clear();
        let limit = OUTCOME_BYTES_MAX as u64;
        let read = (&mut stdout).take(limit).read_until(b'\n', &mut line).await;
        match read.map_err(|error| format!("its output cannot be read: {error}"))? {
            0 => return Ok(told),
            _ if line.last() == Some(&b'\n') => {}
            _ if line.len() as u64 == limit => {
                return Err(format!("it wrote a line of more than {limit} bytes"));
            }
            _ => return Err("its output ends within a line".to_owned()),
        }
        match serde_json::from_slice::<WorkReport<Box<RawValue>>>(&line) {
            Ok(WorkReport::Progress { disks }) => on_progress(disks),
            Ok(WorkReport::Done { report }) => {
                told = Some(TaskOutcome::Done(report.get().as_bytes().to_vec()));
            }
            Ok(WorkReport::Failed { failure }) => told = Some(TaskOutcome::Failed(failure)),
            Err(error) => return Err(format!("it wrote what is no report: {error}")),
        }
    }
}

fn outcome(
    told: Result<Option<TaskOutcome>, String>,
    ended: Option<End>,
    status: std::io::Result<ExitStatus>,
) -> TaskOutcome {
    let status = match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    match (told, ended) {
        (Ok(Some(done @ TaskOutcome::Done(_))), _) => done,
        (_, Some(End::Stopped)) => TaskOutcome::Stopped,
        (_, Some(End::MoverStops)) => TaskOutcome::Died("the mover was stopped".into()),
        (Ok(Some(told)), None) => told,
        (Ok(None), None) => {
            TaskOutcome::Died(format!("its process ended without a word: {status}"))
        }
        (Err(text), None) => TaskOutcome::Died(format!("{text} ({status})")),
    }
}
