//! What gantryd and a mover say to each other: [`Command`] goes down, [`Report`] comes up.
//!
//! In: messages. Out: frames of `length: u32 LE` and one postcard message, and back, bounded. The
//! mover dials gantryd ([`CONTROL_ALPN`] on QUIC, mutually authenticated) and keeps one
//! bidirectional stream open for as long as it runs; it says [`Report::Hello`] first. postcard does
//! not describe itself: every change of a type in this file is a new [`CONTROL_PROTOCOL`].
//!
//! Work travels as the JSON that `gantry-mover work` reads ([`crate::work`]), and its outcome as the
//! JSON that it prints: who carries them on need not understand them.
//!
//! Invariants: a command may come twice ([`Command::Start`] of a task that is known is no second
//! start); a task's end is reported at every `Hello` until [`Command::Forget`], so that neither end
//! can lose it. A mover that has lost gantryd goes on with its tasks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::failure::Failure;
use crate::ids::{RepositoryId, TaskId};
use crate::manage::{ManageReport, ManageRequest};
use crate::secret::Secret;
use crate::wire::PointSummary;
use crate::work::{DiskProgress, WORK_BYTES_MAX};

/// Protocol number, sent in [`Report::Hello`] and carried by [`CONTROL_ALPN`].
pub const CONTROL_PROTOCOL: u16 = 3;
/// ALPN of a mover's connection to gantryd.
pub const CONTROL_ALPN: &[u8] = b"gantry-control/3";
/// Bytes of a frame's length.
pub const CONTROL_PREFIX_BYTES: usize = 4;
/// Bytes of a command: a work document and a little.
pub const COMMAND_BYTES_MAX: u32 = WORK_BYTES_MAX as u32 + (1 << 16);
/// Bytes of a report: a session's whole report, or a page of points.
pub const REPORT_BYTES_MAX: u32 = 64 << 20;
/// A mover that says nothing for this long is taken for lost; each end speaks at least every third
/// of it.
pub const SILENCE_SECONDS_MAX: u64 = 30;

/// What a mover is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The answer to `Hello`.
    Welcome {
        /// gantryd's name and version.
        software: String,
        /// Milliseconds since 1970 at gantryd, so that a wrong clock is noticed.
        now_ms: u64,
        /// For a repository mover: the key that its tickets are made with. It is kept (mode 0600)
        /// for the time when gantryd is away.
        ticket_key: Option<Secret>,
    },
    /// Begin a task, unless it is known already.
    Start {
        /// Its name from now on.
        task: TaskId,
        /// JSON of a [`crate::work::BackupWork`] (or another document of `gantry-mover work`).
        work: Vec<u8>,
    },
    /// End a task; what is durable stays. Its end is reported as usual.
    Stop {
        /// Which.
        task: TaskId,
    },
    /// The task's end has been taken in: the mover forgets it, and the files of its credentials.
    Forget {
        /// Which.
        task: TaskId,
    },
    /// Limit a running task's rate on the wire, at once.
    SetRate {
        /// Which.
        task: TaskId,
        /// Bytes a second; nothing: unlimited.
        bytes_per_second: Option<u64>,
    },
    /// Write a file (mode 0600) with a credential, such as a session's cookie, into the task's
    /// private folder, [`MoverFacts::private_folder`]`/TASK/NAME`; also before the task's `Start`.
    SetCredential {
        /// Which.
        task: TaskId,
        /// Letters, digits, `-` and `_`.
        name: String,
        /// The file's content.
        content: Secret,
    },
    /// A question; its answer bears the same number.
    Ask {
        /// Of this connection.
        number: u64,
        /// What.
        question: Question,
    },
    /// Nothing: the connection lives.
    Idle,
}

/// What gantryd asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The repository's restore points; answered in pages.
    Points {
        /// The VM's name; empty: all.
        name: String,
        /// The deleted ones instead.
        deleted: bool,
    },
    /// The configuration of a point's VM, as it was kept.
    VmConfig {
        /// The VM's name.
        name: String,
        /// The point, in hexadecimal.
        point: String,
    },
    /// Look after the repository. May take hours.
    Manage(ManageRequest),
    /// The mover's facts, now.
    Facts,
    /// Keep this copy of gantryd's database in the repository's folder, durably.
    KeepCopy {
        /// When it was made, milliseconds since 1970; older ones go when there are several.
        created_ms: u64,
        /// Its bytes, at most [`crate::limits::COPY_BYTES_MAX`].
        bytes: Vec<u8>,
    },
}

/// What a mover says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// First, on every connection.
    Hello {
        /// [`CONTROL_PROTOCOL`].
        protocol: u16,
        /// The mover's name and version.
        software: String,
        /// What it is and can do.
        facts: MoverFacts,
        /// Every task that it knows.
        tasks: Vec<TaskStanding>,
    },
    /// How a task goes on, about every second.
    Progress {
        /// Which.
        task: TaskId,
        /// Each of its disks.
        disks: Vec<DiskProgress>,
    },
    /// A task has ended.
    Ended {
        /// Which.
        task: TaskId,
        /// How.
        outcome: TaskOutcome,
    },
    /// An answer, or a part of it.
    Answer {
        /// The question's number.
        number: u64,
        /// The answer.
        answer: Result<Answer, Failure>,
        /// More of it follows.
        more: bool,
    },
    /// Nothing but its load: the mover lives.
    Idle {
        /// Load average of its host over a minute, in hundredths.
        load_hundredths: u32,
        /// Free bytes of its repository's file system.
        free_bytes: Option<u64>,
    },
}

/// What a mover answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Some restore points.
    Points(Vec<PointSummary>),
    /// The VM's configuration.
    VmConfig(Vec<u8>),
    /// Of looking after the repository.
    Manage(ManageReport),
    /// Its facts.
    Facts(MoverFacts),
    /// The copy is durable.
    CopyKept,
}

/// What a mover is and can do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoverFacts {
    /// Name of its host.
    pub host: String,
    /// Cores of its CPU set.
    pub cores: u32,
    /// Memory of its host, in bytes.
    pub memory_bytes: u64,
    /// Datastores that its configuration says are mounted: name in vCenter → folder.
    pub mounts: BTreeMap<String, String>,
    /// Its virtual machine's BIOS or instance UUID as DMI tells it, if it is one.
    pub machine_uuid: Option<String>,
    /// Its repository, if it serves one.
    pub repository: Option<RepositoryFacts>,
    /// Folder of its tasks' credentials.
    pub private_folder: String,
}

/// A repository that a mover serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryFacts {
    /// Which.
    pub id: RepositoryId,
    /// Port on which other movers reach it.
    pub port: u16,
    /// Its folder.
    pub path: String,
    /// Bytes of its file system, and those that are free.
    pub capacity_bytes: u64,
    /// See `capacity_bytes`.
    pub free_bytes: u64,
}

/// A task as its mover knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStanding {
    /// Which.
    pub task: TaskId,
    /// How it ended; nothing: it runs.
    pub ended: Option<TaskOutcome>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskOutcome {
    /// As asked: JSON of the report.
    Done(Vec<u8>),
    /// It failed.
    Failed(Failure),
    /// It was stopped by [`Command::Stop`].
    Stopped,
    /// Its process, or the whole mover, went down in the middle of it.
    Died(String),
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Longer than allowed.
    #[error("a control message of {bytes} bytes, and {max} are allowed")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The bound.
        max: u32,
    },
    /// Not of this protocol.
    #[error(
        "no message of control protocol {CONTROL_PROTOCOL}: the other end may be of another version"
    )]
    Garbled,
}

/// Encodes a message with its length before it.
///
/// # Errors
/// [`ControlError::TooLong`].
pub fn encode<T: Serialize>(message: &T, max: u32) -> Result<Vec<u8>, ControlError> {
    let body = postcard::to_stdvec(message).map_err(|_| ControlError::Garbled)?;
    let bytes = body.len() as u64;
    let length = u32::try_from(bytes).ok().filter(|length| *length <= max);
    let length = length.ok_or(ControlError::TooLong { bytes, max })?;
    Ok([&length.to_le_bytes()[..], &body].concat())
}

/// Length of the message that these first bytes announce.
///
/// # Errors
/// [`ControlError::TooLong`]: nothing must be allocated for it.
pub fn length(prefix: [u8; CONTROL_PREFIX_BYTES], max: u32) -> Result<usize, ControlError> {
    match u32::from_le_bytes(prefix) {
        length if length > max => Err(ControlError::TooLong { bytes: length.into(), max }),
        length => Ok(length as usize),
    }
}

/// Decodes a message (without its length).
///
/// # Errors
/// [`ControlError::Garbled`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(ControlError::Garbled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_lengths_are_bounded() {
        let task = TaskId([7; 16]);
        let command =
            Command::SetCredential { task, name: "cookie".into(), content: Secret::new("word") };
        assert!(!format!("{command:?}").contains("word"));
        let frame = encode(&command, COMMAND_BYTES_MAX).unwrap();
        let (prefix, body) = frame.split_first_chunk().unwrap();
        assert_eq!(length(*prefix, COMMAND_BYTES_MAX), Ok(body.len()));
        assert_eq!(decode(body), Ok(command));
        assert!(matches!(length([0xff; 4], REPORT_BYTES_MAX), Err(ControlError::TooLong { .. })));
        let long = Report::Ended { task, outcome: TaskOutcome::Done(vec![0; 100]) };
        assert!(matches!(encode(&long, 99), Err(ControlError::TooLong { .. })));
    }

    #[test]
    fn spoilt_bytes_are_refused_without_a_panic() {
        let hello = Report::Hello {
            protocol: CONTROL_PROTOCOL,
            software: "mover".into(),
            facts: MoverFacts::default(),
            tasks: vec![TaskStanding { task: TaskId([1; 16]), ended: None }],
        };
        let body = postcard::to_stdvec(&hello).unwrap();
        assert_eq!(decode::<Report>(&[&body[..], &[0]].concat()), Err(ControlError::Garbled));
        for seed in 0..5_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut spoilt = body.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..spoilt.len());
                spoilt[at] = random.u8(..);
            }
            let _ = decode::<Report>(&spoilt);
            let _ = decode::<Command>(&spoilt);
        }
    }
}
