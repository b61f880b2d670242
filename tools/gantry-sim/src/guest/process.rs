//! A guest's processes: those it always has, and those that guest operations start.
//!
//! In: programs. Out: a process each, its end and exit code, which stay known. A process is a task
//! that does its [`Shell`]'s steps until it ends, is terminated, or its machine loses power.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::shell::{Shell, Step};
use crate::drill;
use crate::limits;
use crate::sim::Sim;

/// The exit code of what was terminated, as a shell tells it (128 + SIGTERM).
const TERMINATED: i32 = 143;

/// A process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number.
    pub pid: i64,
    /// The program's own name.
    pub name: String,
    /// Who started it.
    pub owner: String,
    /// Program and arguments.
    pub command: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended, and its exit code.
    pub ended: Option<(Timestamp, i32)>,
}

/// The processes of one guest.
#[derive(Debug)]
pub struct Processes {
    all: BTreeMap<i64, Process>,
    running: BTreeMap<i64, tokio::task::AbortHandle>,
    next: i64,
}

impl Default for Processes {
    fn default() -> Self {
        let mut processes = Self { all: BTreeMap::new(), running: BTreeMap::new(), next: 1000 };
        for (pid, name) in [(1, "systemd"), (612, "vmtoolsd")] {
            let command = format!("/usr/bin/{name}");
            let process = process(pid, name, "root", command);
            processes.all.insert(pid, process);
        }
        processes
    }
}

fn process(pid: i64, name: &str, owner: &str, command: String) -> Process {
    let (name, owner) = (name.to_owned(), owner.to_owned());
    Process { pid, name, owner, command, started: Timestamp::now(), ended: None }
}

impl Processes {
    /// All that are known, ended ones too.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.all.values()
    }

    /// Ends a process; false if there is none of that number that runs.
    pub fn terminate(&mut self, pid: i64) -> bool {
        let Some(handle) = self.running.remove(&pid) else { return false };
        handle.abort();
        self.end(pid, TERMINATED);
        true
    }

    /// All end without a trace: the machine lost its power.
    pub fn clear(&mut self) {
        for handle in self.running.values() {
            handle.abort();
        }
        *self = Self { next: self.next, ..Self::default() };
    }

    fn end(&mut self, pid: i64, code: i32) {
        self.running.remove(&pid);
        if let Some(process) = self.all.get_mut(&pid) {
            process.ended.get_or_insert((Timestamp::now(), code));
        }
    }

    fn add(&mut self, owner: &str, program: &str, arguments: &str) -> i64 {
        self.next += 1;
        let pid = self.next;
        let name = program.rsplit('/').next().unwrap_or(program);
        let command = format!("{program} {arguments}").trim_end().to_owned();
        self.all.insert(pid, process(pid, name, owner, command));
        let ended = self.all.values().filter(|process| process.ended.is_some());
        if self.all.len() > limits::GUEST_PROCESSES_MAX
            && let Some(oldest) = ended.map(|process| process.pid).next()
        {
            self.all.remove(&oldest);
        }
        pid
    }

    /// Whether one more may run.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.running.len() < limits::GUEST_PROCESSES_MAX / 2
    }
}

/// Starts a program in a machine's guest; its number. To be called in a runtime's reach.
pub fn start(
    sim: &Arc<Sim>,
    machine: u32,
    owner: &str,
    (program, arguments): (&str, &str),
    environment: BTreeMap<String, String>,
) -> i64 {
    let shell = Shell::new(program, arguments, environment);
    let mut systems = sim.guest_systems();
    let pid = systems.of(machine).processes.add(owner, program, arguments);
    let task = tokio::runtime::Handle::current().spawn(run(sim.clone(), machine, pid, shell));
    // The lock is held: the process cannot have ended before it is known to run.
    systems.of(machine).processes.running.insert(pid, task.abort_handle());
    pid
}

async fn run(sim: Arc<Sim>, machine: u32, pid: i64, mut shell: Shell) {
    let code = loop {
        let step = shell.step(&mut sim.guest_systems().of(machine).files);
        match step {
            Step::Next => tokio::task::yield_now().await,
            Step::Sleep(time) => tokio::time::sleep(time).await,
            Step::Hang => std::future::pending().await,
            Step::Writes(go) => {
                let sim = sim.clone();
                // Stopping waits for a write that is under way.
                let done = tokio::task::spawn_blocking(move || drill::pause(&sim, machine, !go));
                let _ = done.await;
            }
            Step::Ended(code) => break code,
        }
    };
    sim.guest_systems().of(machine).processes.end(pid, code);
}
