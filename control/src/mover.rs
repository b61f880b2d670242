//! The data mover as the control plane starts it: a child process on this host.
//!
//! In: work, questions about restore points. Out: progress, the mover's report, its failure. The
//! work travels over the child's standard input, since it holds session cookies, and that input is
//! the child's lifeline: it stops when the control plane is gone. Must not: touch block data.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use gantry_common::failure::Failure;
use gantry_common::work::{BackupWork, DiskProgress, RepositoryAccess, WorkReport};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Bytes of one line that a mover says, and of what it complains.
const LINE_BYTES_MAX: u64 = 64 << 20;
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

/// Of the mover's report what the control plane looks at; `whole` is all of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MoverReport {
    /// The committed point.
    pub point: String,
    /// Each disk.
    pub disks: Vec<MoverDisk>,
    /// The mover's part of the session log.
    pub log: Vec<String>,
}

/// A disk of a mover's report.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MoverDisk {
    /// How it was read: `full`, `extents`, `compare`.
    pub mode: Option<String>,
    /// The audit of changed-block tracking.
    #[serde(default)]
    pub audit: Option<MoverAudit>,
}

/// What an audit found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct MoverAudit {
    /// Blocks compared.
    pub blocks: u64,
    /// Blocks that had changed though they were not listed.
    pub wrong: u64,
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
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let output = output.map_err(self.io("start it"))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(self.silent(format!("cannot list restore points: {complaint}")));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| self.silent(format!("listed what is no list of points: {error}")))
    }

    /// Backs up. Dropping the future stops the mover; what is durable stays.
    ///
    /// # Errors
    /// [`MoverError`]; nothing was committed, unless the mover died after the commit: the next run
    /// of the same session finds the point.
    pub async fn backup(
        &self,
        work: &BackupWork,
        mut progress: impl FnMut(Vec<DiskProgress>),
    ) -> Result<(MoverReport, serde_json::Value), MoverError> {
        let mut command = Command::new(&self.program);
        command.arg("work").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().map_err(self.io("start it"))?;
        let mut line = serde_json::to_vec(work)
            .map_err(|error| self.silent(format!("cannot be told its work: {error}")))?;
        line.push(b'\n');
        let lifeline = child.stdin.take();
        let (said, complaint) = self.converse(&mut child, lifeline, line, &mut progress).await?;
        let status = child.wait().await.map_err(self.io("wait for it"))?;
        match said {
            Some(WorkReport::Done { report }) => {
                let read = MoverReport::deserialize(&report);
                let read = read.map_err(|error| self.silent(format!("reported oddly: {error}")))?;
                Ok((read, report))
            }
            Some(WorkReport::Failed { failure }) => Err(MoverError::Failed(failure)),
            Some(WorkReport::Progress { .. }) | None => {
                Err(self.silent(format!("ended without a result ({status}): {complaint}")))
            }
        }
    }

    /// Tells the work and listens until the last word.
    async fn converse(
        &self,
        child: &mut Child,
        lifeline: Option<tokio::process::ChildStdin>,
        work: Vec<u8>,
        progress: &mut impl FnMut(Vec<DiskProgress>),
    ) -> Result<(Option<WorkReport<serde_json::Value>>, String), MoverError> {
        let (Some(mut lifeline), Some(stdout), Some(stderr)) =
            (lifeline, child.stdout.take(), child.stderr.take())
        else {
            return Err(self.silent("has no pipes".to_owned()));
        };
        let complaints = tokio::spawn(async move {
            let mut text = Vec::new();
            let mut bounded = stderr.take(COMPLAINT_BYTES_MAX);
            let _ = bounded.read_to_end(&mut text).await;
            // What is beyond is drained, so that the mover does not stop at a full pipe.
            let _ = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        // A mover that refuses its work at once closes its input; what it says counts.
        let _ = lifeline.write_all(&work).await;
        let mut last = None;
        let mut lines = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            let mut bounded = (&mut lines).take(LINE_BYTES_MAX);
            let read = bounded.read_until(b'\n', &mut line).await;
            if read.map_err(self.io("listen to it"))? == 0 {
                break;
            }
            match self.parse(&line)? {
                WorkReport::Progress { disks } => progress(disks),
                word => last = Some(word),
            }
        }
        drop(lifeline);
        Ok((last, complaints.await.unwrap_or_default()))
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, MoverError> {
        serde_json::from_slice(line).map_err(|error| {
            let text: String = String::from_utf8_lossy(line).chars().take(200).collect();
            self.silent(format!("said what is no report ({error}): {text}"))
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
