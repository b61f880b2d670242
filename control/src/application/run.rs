//! Runs a script in a guest, and leaves nothing there.
//!
//! In: a machine, a [`ScriptRun`], a sign to cancel. Out: [`ScriptEnd`], or why it did not end.
//! Order: login checked → folder of its own → script up → started → looked at until it ends →
//! output down → folder deleted. The folder is deleted whatever happened, also when the caller no
//! longer waits: the work is a task of its own. A program that overruns its time is terminated.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::plan::{Family, Plan, PlanError, Script, ScriptRun};
use crate::limits;
use crate::vcenter::guest::{Guest, GuestError, GuestProcess};
use crate::vcenter::{VCenter, VmRef};

/// A script that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptEnd {
    /// Its exit code.
    pub exit_code: i32,
    /// What it wrote, both streams; what is no UTF-8 is replaced.
    pub output: String,
    /// Whether it wrote more than [`limits::SCRIPT_OUTPUT_BYTES_MAX`].
    pub is_output_cut: bool,
    /// What could not be read or removed, for the log.
    pub remarks: Vec<String>,
}

impl ScriptEnd {
    /// Why it counts as failed, in words; nothing if it did not.
    pub fn failure(&self) -> Option<String> {
        let output = crate::vcenter::soap::quoted(&self.output);
        (self.exit_code != 0)
            .then(|| format!("the script ended with exit code {}: {output}", self.exit_code))
    }
}

/// Why a script did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be run as it is.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// A guest operation failed.
    #[error("{0}")]
    Guest(#[from] GuestError),
    /// It did not end in time, and was terminated.
    #[error(
        "{vm}: the script did not end within {seconds} s and was terminated; it wrote: {output}"
    )]
    TimedOut {
        /// The machine.
        vm: String,
        /// Its time.
        seconds: u64,
        /// The beginning of its output.
        output: String,
    },
    /// It was cancelled, and terminated.
    #[error("{vm}: the script was cancelled and terminated")]
    Cancelled {
        /// The machine.
        vm: String,
    },
    /// The guest no longer knows its process.
    #[error("{vm}: the guest knows nothing of the script's process {pid}; it may have restarted")]
    Lost {
        /// The machine.
        vm: String,
        /// The process.
        pid: i64,
    },
}

/// Runs a script. Needs a tokio runtime. Dropping the future does not stop the run; `cancel` does.
///
/// # Errors
/// See [`ScriptError`]. Whatever it is, what was brought into the guest is gone, or the log says
/// that it could not be removed.
pub async fn run(
    vcenter: &VCenter,
    vm: &VmRef,
    family: Family,
    script: ScriptRun,
    cancel: Option<watch::Receiver<bool>>,
) -> Result<ScriptEnd, ScriptError> {
    // What is wrong with it is found before anything is done in the guest.
    Plan::new(&script, family, "/")?;
    let guest = Guest::enter(vcenter, vm, script.login.clone()).await?;
    let name = vm.to_string();
    let task = tokio::spawn(run_in_folder(guest, family, script, cancel));
    // It is never aborted: only a runtime that ends ends it.
    task.await.unwrap_or(Err(ScriptError::Cancelled { vm: name }))
}

async fn run_in_folder(
    guest: Guest,
    family: Family,
    script: ScriptRun,
    mut cancel: Option<watch::Receiver<bool>>,
) -> Result<ScriptEnd, ScriptError> {
    let folder = guest.create_temporary_folder("gantry-").await?;
    let ended = run_to_end(&guest, family, &script, &folder, &mut cancel).await;
    let removed = remove(&guest, &folder).await;
    match (ended, removed) {
        (Ok(mut end), Err(remark)) => {
            end.remarks.push(remark);
            Ok(end)
        }
        (ended, _) => ended,
    }
}

async fn remove(guest: &Guest, folder: &str) -> Result<(), String> {
    let mut tries = 0;
    loop {
        tries += 1;
        let Err(error) = guest.delete_folder(folder).await else { return Ok(()) };
        if tries >= limits::GUEST_REMOVE_TRIES_MAX {
            let remark =
                format!("the folder {folder} could not be removed from the guest: {error}");
            tracing::warn!(vm = %guest.vm(), "{remark}");
            return Err(remark);
        }
        // Windows holds files a moment longer than the process that had them open.
        tokio::time::sleep(Duration::from_millis(limits::GUEST_POLL_MS)).await;
    }
}

async fn run_to_end(
    guest: &Guest,
    family: Family,
    script: &ScriptRun,
    folder: &str,
    cancel: &mut Option<watch::Receiver<bool>>,
) -> Result<ScriptEnd, ScriptError> {
    let plan = Plan::new(script, family, folder)?;
    if let (Some(path), Script::Upload { content, .. }) = (&plan.upload, &script.script) {
        guest.upload(path, content.clone(), family == Family::Posix, true).await?;
    }
    let deadline = Instant::now() + script.timeout;
    let pid = start(guest, &plan).await?;
    let ended = wait(guest, pid, deadline, cancel).await;
    let exit_code = match ended {
        Ok(Some(exit_code)) => exit_code,
        Ok(None) => {
            terminate(guest, pid).await;
            let vm = guest.vm().to_string();
            if cancel.as_ref().is_some_and(|cancel| *cancel.borrow()) {
                return Err(ScriptError::Cancelled { vm });
            }
            let (output, ..) = output(guest, &plan).await;
            let output = crate::vcenter::soap::quoted(&output);
            return Err(ScriptError::TimedOut { vm, seconds: script.timeout.as_secs(), output });
        }
        Err(error) => {
            terminate(guest, pid).await;
            return Err(error);
        }
    };
    let (output, is_output_cut, remark) = output(guest, &plan).await;
    Ok(ScriptEnd { exit_code, output, is_output_cut, remarks: remark.into_iter().collect() })
}

/// Starts it; after a lost answer it is looked for by its output's path, which is in no other
/// command.
async fn start(guest: &Guest, plan: &Plan) -> Result<i64, GuestError> {
    let error = match guest.start(&plan.program, &plan.arguments).await {
        Err(error) if error.outcome_is_unknown() => error,
        started => return started,
    };
    tracing::warn!(%error, "it is looked for the script's process, since the answer was lost");
    let all = guest.processes(None).await?;
    let own = all.iter().find(|process| process.command.contains(&plan.output));
    own.map(|process| process.pid).ok_or(error)
}

/// The exit code; nothing when its time is over or it was cancelled.
async fn wait(
    guest: &Guest,
    pid: i64,
    deadline: Instant,
    cancel: &mut Option<watch::Receiver<bool>>,
) -> Result<Option<i32>, ScriptError> {
    let mut failures = 0;
    loop {
        match guest.processes(Some(pid)).await {
            Ok(found) => {
                failures = 0;
                let own = |one: &&GuestProcess| one.pid == pid;
                match found.iter().find(own).map(|process| process.exit_code) {
                    Some(Some(exit_code)) => return Ok(Some(exit_code)),
                    Some(None) => {}
                    None => return Err(ScriptError::Lost { vm: guest.vm().to_string(), pid }),
                }
            }
            Err(error) if error.is_retryable() && failures < limits::CALL_TRIES_MAX => {
                failures += 1;
                tracing::info!(%error, "the script cannot be looked at just now");
            }
            Err(error) => return Err(error.into()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let pause = left.min(Duration::from_millis(limits::GUEST_POLL_MS));
        tokio::select! {
            () = asked(cancel) => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn asked(cancel: &mut Option<watch::Receiver<bool>>) {
    if let Some(cancel) = cancel
        && cancel.wait_for(|asked| *asked).await.is_ok()
    {
        return;
    }
    // Whoever could have cancelled is gone, or was never there.
    std::future::pending().await
}

async fn terminate(guest: &Guest, pid: i64) {
    if let Err(error) = guest.terminate(pid).await {
        tracing::warn!(%error, pid, "the script could not be terminated");
    }
}

/// Output, whether it was cut, and why it could not be read.
async fn output(guest: &Guest, plan: &Plan) -> (String, bool, Option<String>) {
    match guest.download(&plan.output, limits::SCRIPT_OUTPUT_BYTES_MAX).await {
        Ok((bytes, is_cut)) => (String::from_utf8_lossy(&bytes).into_owned(), is_cut, None),
        Err(error) => {
            (String::new(), false, Some(format!("its output could not be read: {error}")))
        }
    }
}
