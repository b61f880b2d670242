//! What must be undone however a command ends: return, error, panic, Ctrl-C or SIGTERM.
//!
//! In: undo actions, each held by a [`Guard`]. Out: each is run exactly once, the youngest first:
//! when its guard is dropped, or by the signal thread before the process leaves.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::shell;

/// Exit code of a command that a signal ended, as shells count.
const EXIT_SIGNALLED: i32 = 130;

/// How to undo one thing.
#[derive(Debug, Clone)]
pub enum Undo {
    /// Unmount what is mounted here.
    Unmount(PathBuf),
    /// Take a loop device off its file.
    Detach(String),
    /// Take a swap device out of use.
    SwapOff(String),
    /// End a process that we started.
    Kill(u32),
    /// Remove a control group that we made; its processes are gone by then.
    RemoveGroup(PathBuf),
    /// Remove a folder that is empty again, as a mount point is.
    RemoveEmptyFolder(PathBuf),
    /// Remove a folder and everything in it.
    RemoveFolder(PathBuf),
}

/// Between two tries to remove what is still busy.
const PAUSE: Duration = Duration::from_millis(25);

/// How often it is looked whether a device is gone.
const GONE_TRIES: u32 = 400;

/// How often the signal thread looks for something left to undo.
const ROUNDS: usize = 4;

static LEAVING: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU64 = AtomicU64::new(0);
static PENDING: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());

fn pending() -> MutexGuard<'static, Vec<(u64, Undo)>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pop() -> Option<(u64, Undo)> {
    pending().pop()
}

/// Goes no further once the process is leaving. Called before anything that makes something new.
pub fn checkpoint() {
    while LEAVING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Holds one undo action; runs it when dropped.
#[derive(Debug)]
#[must_use = "dropping it undoes at once"]
pub struct Guard {
    number: u64,
}

impl Guard {
    /// Registers an undo action.
    pub fn new(undo: Undo) -> Guard {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        pending().push((number, undo));
        Guard { number }
    }
}

impl Guard {
    /// Forgets the action: what it would have undone has ended by itself.
    pub fn disarm(self) {
        pending().retain(|(number, _)| *number != self.number);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The lock is held while undoing, so that the signal thread waits for it.
        let mut list = pending();
        if let Some(at) = list.iter().position(|(number, _)| *number == self.number) {
            let (_, undo) = list.remove(at);
            perform(&undo);
        }
    }
}

fn quietly(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn perform(undo: &Undo) {
    match undo {
        Undo::Unmount(at) => {
            if !quietly(shell::undo_command("umount").arg(at)) {
                eprintln!("warning: {} is busy; unmounting it later", at.display());
                quietly(shell::undo_command("umount").arg("--lazy").arg(at));
            }
        }
        Undo::Detach(device) => {
            quietly(shell::undo_command("losetup").args(["--detach", device]));
            // A busy device is detached later by the kernel: whoever reads its file must wait.
            let name = device.trim_start_matches("/dev/");
            let backing = PathBuf::from(format!("/sys/block/{name}/loop/backing_file"));
            for _ in 0..GONE_TRIES {
                if !backing.exists() {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
        Undo::SwapOff(device) => {
            // It may fail while the kernel is just writing to it; left on, it would write into
            // the image later.
            for _ in 0..GONE_TRIES {
                quietly(shell::undo_command("swapoff").arg(device));
                let table = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
                if !table.lines().any(|line| line.split_whitespace().next() == Some(device)) {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
        Undo::Kill(process) => kill(*process),
        Undo::RemoveGroup(folder) => {
            // The kernel needs a moment after the last process of the group is gone.
            for _ in 0..50 {
                if std::fs::remove_dir(folder).is_ok() || !folder.exists() {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
        Undo::RemoveEmptyFolder(folder) => {
            let _ = std::fs::remove_dir(folder);
        }
        Undo::RemoveFolder(folder) => {
            // Another thread may still be writing into it; without the folder it soon fails.
            for _ in 0..40 {
                let _ = std::fs::remove_dir_all(folder);
                if !folder.exists() {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn kill(process: u32) {
    let Some(pid) = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    // Reap it if it is our child, so that what it held (mounts, groups) is free again.
    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
}

/// From now on Ctrl-C and SIGTERM undo everything pending and leave.
pub fn on_signals() {
    let wait = async {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else {
            return;
        };
        runtime.block_on(wait);
        eprintln!("interrupted; cleaning up");
        LEAVING.store(true, Ordering::SeqCst);
        // What another thread was just making is registered a moment later.
        for _ in 0..ROUNDS {
            std::thread::sleep(PAUSE * 2);
            while let Some((_, undo)) = pop() {
                perform(&undo);
            }
        }
        std::process::exit(EXIT_SIGNALLED);
    });
}
