//! The ledger: what a session is about to leave behind in vSphere, written down before it is made.
//!
//! In: undos, before the step that needs them; their end, once they were done. Out: after a crash,
//! every undo that is still open, the newest first. One JSON object a line, each made durable before
//! [`Ledger::begin`] returns; a torn last line is a step that was never begun. Invariant: nothing
//! that Gantry makes in vSphere stands nowhere in the ledger. Must not: act; who opens the ledger
//! carries the undos out. Holds no secret.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::durable_file;

/// Bytes of a ledger: beyond, something is wrong that a person must look at.
const LEDGER_BYTES_MAX: u64 = 64 << 20;

/// How a step is undone. Each is idempotent: undoing what is not there succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Remove the snapshot with this name from the VM, and consolidate its disks.
    RemoveSnapshot {
        /// vCenter's instance UUID.
        vcenter: String,
        /// The VM's instance UUID.
        vm: String,
        /// For messages.
        vm_name: String,
        /// The snapshot's name, which is Gantry's and no other's.
        snapshot: String,
    },
    /// Detach the disk from the proxy VM, without deleting its files.
    DetachDisk {
        /// vCenter's instance UUID.
        vcenter: String,
        /// The proxy VM's instance UUID.
        proxy_vm: String,
        /// Backing file of the frozen disk, `[datastore] folder/file.vmdk`.
        file: String,
        /// Its UUID.
        disk_uuid: String,
    },
    /// Remove a machine that a restore has begun to make, and the folder of its files.
    RemoveMadeVm {
        /// vCenter's instance UUID.
        vcenter: String,
        /// The machine's instance UUID.
        vm: String,
        /// For messages.
        vm_name: String,
        /// Reference of the datastore's datacenter.
        datacenter: String,
        /// `[datastore] folder`, which is this restore's own and has a name that no other can have.
        folder: String,
    },
    /// Give up the export lease.
    AbortLease {
        /// vCenter's instance UUID.
        vcenter: String,
        /// The lease's reference.
        lease: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begin { number: u64, session: String, undo: Undo },
    Done { number: u64 },
}

/// An undo that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Its number.
    pub number: u64,
    /// The session that began it.
    pub session: String,
    /// What is to be done.
    pub undo: Undo,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another process has it.
    #[error("{path} is in use by another gantry process; wait for its end")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line in the middle is not what was written.
    #[error(
        "{path}, line {line}: {what}. Look for snapshots named 'gantry' in vCenter yourself, then \
         move the file away"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// The open ledger; the file is locked as long as it lives.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    state: Mutex<State>,
    /// Its lock ends with the descriptor.
    _lock: File,
}

#[derive(Debug)]
struct State {
    file: File,
    open: BTreeMap<u64, (String, Undo)>,
    next: u64,
}

impl Ledger {
    /// Opens the ledger in `folder`, made if it is not there, and shortens it to what is open.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(folder: &Path) -> Result<Ledger, LedgerError> {
        let path = folder.join("ledger");
        let fail = |action| {
            let path = path.clone();
            move |source| LedgerError::Io { action, path, source }
        };
        std::fs::create_dir_all(folder).map_err(fail("make the folder of"))?;
        // The lock has a file of its own: the ledger itself is replaced when it is shortened.
        let lock = open_private(&folder.join("ledger.lock")).map_err(fail("open the lock of"))?;
        if let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            let path = path.clone();
            return Err(match errno {
                rustix::io::Errno::WOULDBLOCK => LedgerError::Locked { path },
                errno => LedgerError::Io { action: "lock", path, source: errno.into() },
            });
        }
        let (open, next) = match File::open(&path) {
            Ok(file) => read(&path, file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (BTreeMap::new(), 1),
            Err(error) => return Err(fail("open")(error)),
        };
        let mut text = Vec::new();
        for (number, (session, undo)) in &open {
            let (number, session, undo) = (*number, session.clone(), undo.clone());
            text.extend(line(&Line::Begin { number, session, undo }));
        }
        durable_file::replace(&path, &text).map_err(fail("write"))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(fail("open"))?;
        let state = Mutex::new(State { file, open, next });
        Ok(Ledger { path, state, _lock: lock })
    }

    /// Writes down that a step is about to be done. Only then may it be done.
    ///
    /// # Errors
    /// [`LedgerError::Io`]: the step must not be done.
    pub fn begin(&self, session: &str, undo: Undo) -> Result<u64, LedgerError> {
        let mut state = self.state();
        let number = state.next;
        let entry = Line::Begin { number, session: session.to_owned(), undo: undo.clone() };
        self.append(&mut state, &entry)?;
        state.next += 1;
        state.open.insert(number, (session.to_owned(), undo));
        Ok(number)
    }

    /// The undo was done, or its step never was.
    ///
    /// # Errors
    /// [`LedgerError::Io`]: it will be done once more, which does no harm.
    pub fn done(&self, number: u64) -> Result<(), LedgerError> {
        let mut state = self.state();
        self.append(&mut state, &Line::Done { number })?;
        state.open.remove(&number);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Disks of a session that are attached to a proxy, as far as is known: number of the undo, the
    /// proxy VM's UUID, the file.
    pub fn attached_of(&self, session: &str) -> Vec<(u64, String, String)> {
        let detached = |open: Open| match open.undo {
            Undo::DetachDisk { proxy_vm, file, .. } => Some((open.number, proxy_vm, file)),
            _ => None,
        };
        self.open_of(session).into_iter().filter_map(detached).collect()
    }

    /// What is open of a session, the newest first.
    pub fn open_of(&self, session: &str) -> Vec<Open> {
        self.open_undos().into_iter().filter(|open| open.session == session).collect()
    }

    /// What is open, the newest first: disks are detached before the snapshot goes.
    pub fn open_undos(&self) -> Vec<Open> {
        let state = self.state();
        let open = state.open.iter().rev();
        open.map(|(number, (session, undo))| Open {
            number: *number,
            session: session.clone(),
            undo: undo.clone(),
        })
        .collect()
    }

    fn append(&self, state: &mut State, entry: &Line) -> Result<(), LedgerError> {
        let written = state.file.write_all(&line(entry)).and_then(|()| state.file.sync_data());
        written.map_err(|source| LedgerError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })
    }
}

fn line(entry: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(entry).expect("lines always encode");
    text.push(b'\n');
    text
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

type Entries = (BTreeMap<u64, (String, Undo)>, u64);

fn read(path: &Path, file: File) -> Result<Entries, LedgerError> {
    let fail = |source| LedgerError::Io { action: "read", path: path.to_owned(), source };
    let mut text = Vec::new();
    file.take(LEDGER_BYTES_MAX + 1).read_to_end(&mut text).map_err(fail)?;
    let damaged = |line, what: String| LedgerError::Damaged { path: path.to_owned(), line, what };
    if text.len() as u64 > LEDGER_BYTES_MAX {
        return Err(damaged(0, "larger than any ledger".to_owned()));
    }
    let (mut open, mut next) = (BTreeMap::new(), 1);
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for (at, text) in lines.iter().enumerate() {
        if !text.ends_with(b"\n") {
            // Cut off while it was written: its step was not begun.
            break;
        }
        let entry =
            serde_json::from_slice(text).map_err(|error| damaged(at + 1, error.to_string()));
        match entry? {
            Line::Begin { number, session, undo } => {
                next = next.max(number.saturating_add(1));
                open.insert(number, (session, undo));
            }
            Line::Done { number } => drop(open.remove(&number)),
        }
    }
    Ok((open, next))
}

#[cfg(test)]
mod tests {
    use super::{Ledger, LedgerError, Undo};
    use std::io::Write;

    fn snapshot(name: &str) -> Undo {
        Undo::RemoveSnapshot {
            vcenter: "vc".into(),
            vm: "vm".into(),
            vm_name: "web".into(),
            snapshot: name.into(),
        }
    }

    fn detach() -> Undo {
        Undo::DetachDisk {
            vcenter: "vc".into(),
            proxy_vm: "proxy".into(),
            file: "[ds] web/web.vmdk".into(),
            disk_uuid: "6000".into(),
        }
    }

    fn undos(ledger: &Ledger) -> Vec<Undo> {
        ledger.open_undos().into_iter().map(|open| open.undo).collect()
    }

    #[test]
    fn what_is_open_outlives_the_process_newest_first_whatever_the_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.begin("s1", snapshot("a")).unwrap();
        let done = ledger.begin("s1", snapshot("b")).unwrap();
        ledger.begin("s1", detach()).unwrap();
        ledger.done(done).unwrap();
        assert_eq!(undos(&ledger), [detach(), snapshot("a")]);
        assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Locked { .. })));
        drop(ledger);
        let path = dir.path().join("ledger");
        let whole = std::fs::read(&path).unwrap();
        // A crash in the middle of each line that could come next.
        for torn in ["{", "{\"begin\":{\"number\":9,", "{\"done\":{\"number\":1}}"] {
            std::fs::write(&path, &whole).unwrap();
            let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(torn.as_bytes()).unwrap();
            let ledger = Ledger::open(dir.path()).unwrap();
            assert_eq!(undos(&ledger), [detach(), snapshot("a")], "{torn}");
        }
        let ledger = Ledger::open(dir.path()).unwrap();
        let next = ledger.begin("s2", snapshot("c")).unwrap();
        assert!(next > 3, "numbers are not used twice: {next}");
    }

    #[test]
    fn a_line_that_is_none_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger"), "nonsense\n{\"done\":{\"number\":1}}\n").unwrap();
        let error = Ledger::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("snapshots named"), "{error}");
    }
}
