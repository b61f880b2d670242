//! The data mover as the control plane starts it: a child process on this host.
//!
//! In: work, questions about restore points. Out: progress, the mover's report, its failure. The
//! work travels over the child's standard input, since it holds session cookies, and that input is
//! the child's lifeline: it stops when the control plane is gone. Must not: touch block data.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use gantry_common::failure::Failure;
use gantry_common::work::{RepositoryAccess, WorkReport};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::run::site::{Task, TaskEvent};

/// Bytes of one line that a mover says, and of what it complains.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// How long a repository in a folder may be held by a mover that is about to end.
const IN_USE_WITHIN: Duration = Duration::from_secs(20);
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

/// Why a mover did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MoverError {
    /// It could not be started or talked to.
    #[error("{program}: cannot {action}: {source}")]
    Io {
        /// The program.
        program: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// It failed, and says why.
    #[error("{0}")]
    Failed(Failure),
    /// It ended without a result, or said what is no report.
    #[error("{program} {what}")]
    Silent {
        /// The program.
        program: PathBuf,
        /// What it did.
        what: String,
    },
}

/// A restore point as the mover lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PointFacts {
    /// Its id, in hexadecimal.
    pub point: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Its disks.
    pub disks: Vec<PointDisk>,
}

/// A disk of a listed point.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PointDisk {
    /// Identity.
    pub identity: String,
    /// Bytes.
    pub size_bytes: u64,
    /// CBT change id of the snapshot that it was read from.
    #[serde(default)]
    pub change_id: Option<String>,
}

/// Starts movers.
#[derive(Debug, Clone)]
pub struct Mover {
    program: PathBuf,
}

impl Mover {
    /// Movers of this program.
    pub fn new(program: PathBuf) -> Mover {
        Mover { program }
    }

    /// The restore points of a name, the oldest first.
    ///
    /// # Errors
    /// [`MoverError`].
    pub async fn points(
        &self,
        repository: &RepositoryAccess,
        name: &str,
    ) -> Result<Vec<PointFacts>, MoverError> {
        let mut command = Command::new(&self.program);
        command.args(["point", "list", "--json", "--repo", &repository.address, "--name", name]);
        for (option, file) in [("--identity", &repository.identity), ("--peer", &repository.peer)] {
            if let Some(file) = file {
                command.arg(option).arg(file);
            }
        }
        let command = command.stdin(Stdio::null()).kill_on_drop(true);
        let until = tokio::time::Instant::now() + IN_USE_WITHIN;
        let output = loop {
            let output = command.output().await.map_err(self.io("start it"))?;
            if output.status.success() {
                break output;
            }
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            // The mover of a session that was killed just now still closes a repository in a folder.
            if !complaint.contains("is in use by process") || tokio::time::Instant::now() > until {
                return Err(self.silent(format!("cannot list restore points: {complaint}")));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        };
        serde_json::from_slice(&output.stdout)
            .map_err(|error| self.silent(format!("listed what is no list of points: {error}")))
    }

    /// Starts work: JSON as `gantry-mover work` reads it. Dropping the task stops the mover; what is
    /// durable stays.
    ///
    /// # Errors
    /// [`MoverError`]: it did not start.
    pub async fn start(&self, work: &[u8]) -> Result<MoverTask, MoverError> {
        let mut command = Command::new(&self.program);
        command.arg("work").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().map_err(self.io("start it"))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut lifeline), Some(stdout), Some(stderr)) = pipes else {
            return Err(self.silent("has no pipes".to_owned()));
        };
        let complaints = tokio::spawn(complaints(stderr));
        // A mover that refuses its work at once closes its input; what it says counts.
        let _ = lifeline.write_all(&[work, b"\n"].concat()).await;
        Ok(MoverTask {
            mover: self.clone(),
            child,
            lifeline: Some(lifeline),
            lines: BufReader::new(stdout),
            line: Vec::new(),
            complaints,
            last: None,
        })
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> MoverError + use<> {
        let program = self.program.clone();
        move |source| MoverError::Io { program: program.clone(), action, source }
    }

    fn silent(&self, what: String) -> MoverError {
        MoverError::Silent { program: self.program.clone(), what }
    }
}

async fn complaints(stderr: ChildStderr) -> String {
    let mut text = Vec::new();
    let mut bounded = stderr.take(COMPLAINT_BYTES_MAX);
    let _ = bounded.read_to_end(&mut text).await;
    // What is beyond is drained, so that the mover does not stop at a full pipe.
    let _ = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Work that a mover does.
#[derive(Debug)]
pub struct MoverTask {
    mover: Mover,
    child: Child,
    /// Its end stops the mover.
    lifeline: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    /// What has come of the present line: a listener may be dropped in the middle of it.
    line: Vec<u8>,
    complaints: tokio::task::JoinHandle<String>,
    last: Option<WorkReport<serde_json::Value>>,
}

impl MoverTask {
    /// Tells the mover to stop; it says its last word as usual.
    pub fn stop(&mut self) {
        self.lifeline = None;
    }

    async fn listen(&mut self) -> Result<TaskEvent, MoverError> {
        loop {
            let left = LINE_BYTES_MAX.saturating_sub(self.line.len() as u64);
            if left == 0 {
                // It still writes, and would never end by itself.
                return Err(self.mover.silent("said a line that has no end".to_owned()));
            }
            let mut bounded = (&mut self.lines).take(left);
            let read = bounded.read_until(b'\n', &mut self.line).await;
            if read.map_err(self.mover.io("listen to it"))? == 0 {
                break;
            }
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                match self.parse(&line)? {
                    WorkReport::Progress { disks } => return Ok(TaskEvent::Progress(disks)),
                    word => self.last = Some(word),
                }
            }
        }
        let status = self.child.wait().await.map_err(self.mover.io("wait for it"))?;
        Ok(match self.last.take() {
            Some(WorkReport::Done { report }) => TaskEvent::Done(report),
            Some(WorkReport::Failed { failure }) => TaskEvent::Failed(failure),
            Some(WorkReport::Progress { .. }) | None => {
                let complaint = (&mut self.complaints).await.unwrap_or_default();
                let text = format!("the mover ended without a result ({status}): {complaint}");
                TaskEvent::Lost(text)
            }
        })
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, MoverError> {
        serde_json::from_slice(line).map_err(|error| {
            let text: String = String::from_utf8_lossy(line).chars().take(200).collect();
            self.mover.silent(format!("said what is no report ({error}): {text}"))
        })
    }
}

impl Task for MoverTask {
    async fn next(&mut self) -> TaskEvent {
        match self.listen().await {
            Ok(event) => event,
            Err(error) => TaskEvent::Failed(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{Mover, Task, TaskEvent};

    #[tokio::test]
    async fn a_line_that_never_ends_is_a_failure_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("mover");
        std::fs::write(&program, "#!/bin/sh\nexec cat /dev/zero\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let mut task = Mover::new(program).start(b"{}").await.unwrap();
        let TaskEvent::Failed(failure) = task.next().await else { panic!("it goes on") };
        assert!(failure.message.contains("no end"), "{failure}");
    }
}
