//! Copies of the configuration database in every repository, and gantryd rebuilt from one.
//!
//! In: changes of the database, movers that connect; a copy, the key file of old. Out: a copy in each
//! repository whose mover is connected, soon after each change; a state folder that a new gantryd starts
//! on. What a copy holds of secrets, the authority's key among them, is sealed under the key file, which
//! is in no copy. Invariant: a rebuilt gantryd begins nothing that an older one was doing: its unfinished
//! sessions have failed.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::PeerId;
use gantry_common::limits::COPY_BYTES_MAX;
use gantry_common::secret::Secret;
use gantry_database::model::{SecretSlot, SessionResult, VmRunRecord};
use gantry_database::{Database, Ending, Imported, Transition};

use super::Parts;
use super::start::private_folder;
use crate::durable_file;
use crate::run::{failed, now_ms};

/// Between two looks; changes that follow each other go into one copy.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A repository without the newest copy is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Copies are made anew so often even if nothing has changed.
const ANEW_AFTER: Duration = Duration::from_secs(24 * 3600);
/// First line of a copy, followed by the SHA-256 of what comes after the line.
const WORD: &str = "gantry-copy-1 ";
/// Why what was not over has failed.
const UNKNOWN: &str = "gantryd was rebuilt from a copy; what became of this since is not known";
/// Copies that are looked at in a repository's folder.
const COPIES_MAX: usize = 1000;

/// The authority's key and certificate, among the secrets.
fn authority_slot() -> SecretSlot {
    SecretSlot::Named("authority".to_owned())
}

fn authority_file(state: &Path) -> PathBuf {
    state.join("authority/authority.pem")
}

/// Puts the authority among the sealed secrets, so that copies hold it.
///
/// # Errors
/// It cannot be read or kept.
pub(super) async fn seal_authority(database: &Database, state: &Path) -> Result<(), Failure> {
    let path = authority_file(state);
    let pem = std::fs::read_to_string(&path);
    let pem =
        pem.map_err(|error| failed(FailureKind::Usage, format!("{}: {error}", path.display())))?;
    let pem = Secret::new(pem);
    let held = database.secret(&authority_slot()).await?;
    match held.is_some_and(|held| held.reveal() == pem.reveal()) {
        true => Ok(()),
        false => Ok(database.set_secret(&authority_slot(), &pem).await?),
    }
}

/// Keeps the repositories' copies current; forever.
pub(super) async fn keep(parts: Parts) {
    let mut kept: BTreeMap<PeerId, (u64, tokio::time::Instant)> = BTreeMap::new();
    let mut tried: BTreeMap<PeerId, tokio::time::Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (changes, now) = (parts.database.changes(), tokio::time::Instant::now());
        let lacks = |pin: &PeerId| {
            let is_current = kept
                .get(pin)
                .is_some_and(|(made_of, when)| *made_of == changes && now - *when < ANEW_AFTER);
            let is_early = tried.get(pin).is_some_and(|when| now - *when < AGAIN_AFTER);
            !is_current && !is_early
        };
        let lacking: Vec<PeerId> = parts.repository_movers().into_iter().filter(lacks).collect();
        if lacking.is_empty() {
            continue;
        }
        let created_ms = now_ms();
        let copy = match parts.database.export(created_ms).await {
            Ok(content) => sign(content),
            Err(error) => {
                tracing::error!("no copy of the database can be made: {error}");
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
        };
        for pin in lacking {
            match parts.fleet.keep_copy(pin, created_ms, copy.clone()).await {
                Ok(()) => {
                    tracing::debug!("mover {pin} keeps a copy of the database");
                    tried.remove(&pin);
                    kept.insert(pin, (changes, now));
                }
                Err(failure) => {
                    tracing::warn!("mover {pin} keeps no copy of the database: {failure}");
                    tried.insert(pin, now);
                }
            }
        }
    }
}

fn digest(content: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A copy with its first line.
fn sign(content: Vec<u8>) -> Vec<u8> {
    let mut copy = format!("{WORD}{}\n", digest(&content)).into_bytes();
    copy.extend(content);
    copy
}

/// What a copy holds; nothing if it is damaged, or none.
fn content(copy: &[u8]) -> Option<&[u8]> {
    let end = copy.iter().take(256).position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&copy[..end]).ok()?;
    let content = &copy[end + 1..];
    (line.strip_prefix(WORD)? == digest(content)).then_some(content)
}

/// What became of a rebuilding.
#[derive(Debug)]
pub struct Rebuilt {
    /// The copy that was taken.
    pub copy: PathBuf,
    /// What of it came back.
    pub imported: Imported,
    /// The authority is back: movers come by themselves. Else they must enrol anew.
    pub authority: bool,
    /// Sessions that were not over when the copy was made.
    pub sessions_ended: usize,
}

/// Makes a state folder from a copy. `from` is a copy, or a repository's folder, of which the newest
/// copy that is whole is taken; `key` the key file of the lost gantryd (`STATE/database/secrets.key`).
///
/// # Errors
/// `Usage`: there is a state already, no copy that is whole, or the key file is none.
pub async fn rebuild(state: &Path, from: &Path, key: Option<&Path>) -> Result<Rebuilt, Failure> {
    let usage = |text: String| failed(FailureKind::Usage, text);
    let folder = state.join("database");
    if folder.join("gantry.sqlite").exists() {
        let text = format!("{} has a database: move it away first", state.display());
        return Err(usage(text));
    }
    let (copy, bytes) = choose(from)?;
    private_folder(state)?;
    private_folder(&folder)?;
    if let Some(key) = key {
        let text = read(key, 1024)?;
        let place = folder.join("secrets.key");
        let written = durable_file::replace(&place, &text);
        written.map_err(|error| usage(format!("{}: {error}", place.display())))?;
    }
    let whole = content(&bytes).unwrap_or_default();
    let (database, imported) = Database::import(&folder, whole).await?;
    for run in database.unfinished_vm_runs().await? {
        database.transition(&ending(run)).await?;
    }
    let unfinished = database.unfinished_sessions().await?;
    for session in &unfinished {
        let totals = &session.totals;
        let ended = database.finish_session(
            session.id,
            SessionResult::Failed,
            Some(UNKNOWN),
            totals,
            now_ms(),
        );
        ended.await?;
    }
    // Sealed under a key that is not there, it is lost.
    let authority = database.secret(&authority_slot()).await.unwrap_or_default();
    if let Some(pem) = &authority {
        let path = authority_file(state);
        if let Some(folder) = path.parent() {
            private_folder(folder)?;
        }
        let written = durable_file::replace(&path, pem.reveal().as_bytes());
        written.map_err(|error| usage(format!("{}: {error}", path.display())))?;
    }
    database.close().await;
    let (authority, sessions_ended) = (authority.is_some(), unfinished.len());
    Ok(Rebuilt { copy, imported, authority, sessions_ended })
}

/// How a run ends that a lost gantryd was doing.
fn ending(run: VmRunRecord) -> Transition {
    let reason = Some(UNKNOWN.to_owned());
    Transition {
        vm_run: run.id,
        new: run.state.clone(),
        expected: run.state,
        document: run.document,
        ending: Some(Ending { result: SessionResult::Failed, reason, point: None }),
        now_ms: now_ms(),
    }
}

/// The newest copy that is whole.
fn choose(from: &Path) -> Result<(PathBuf, Vec<u8>), Failure> {
    let usage = |text: String| failed(FailureKind::Usage, text);
    let mut candidates = vec![from.to_owned()];
    if from.is_dir() {
        let inside = if from.join("gantryd").is_dir() { from.join("gantryd") } else { from.into() };
        let entries = std::fs::read_dir(&inside);
        let entries = entries.map_err(|error| usage(format!("{}: {error}", inside.display())))?;
        let paths = entries.flatten().map(|entry| entry.path()).take(COPIES_MAX);
        candidates = paths.filter(|path| path.extension().is_some_and(|e| e == "copy")).collect();
        // Names are times of one length.
        candidates.sort_unstable();
        candidates.reverse();
    }
    let mut damaged = Vec::new();
    for path in candidates {
        match read(&path, COPY_BYTES_MAX as u64) {
            Ok(bytes) if content(&bytes).is_some() => return Ok((path, bytes)),
            Ok(_) => damaged.push(format!("{} is damaged, or no copy", path.display())),
            Err(failure) => damaged.push(failure.message),
        }
    }
    let why = if damaged.is_empty() { "there is none".to_owned() } else { damaged.join("; ") };
    Err(usage(format!("no copy of gantryd's database in {}: {why}", from.display())))
}

fn read(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let named = |why: String| failed(FailureKind::Usage, format!("{}: {why}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| named(error.to_string()))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| named(error.to_string()))?;
    match bytes.len() as u64 {
        length if length <= max => Ok(bytes),
        _ => Err(named(format!("more than {max} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_copy_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("gantryd");
        std::fs::create_dir(&inside).unwrap();
        let failure = choose(folder.path()).unwrap_err();
        assert!(failure.message.contains("there is none"), "{failure}");
        let older = inside.join("0000000000000001.copy");
        std::fs::write(&older, sign(b"older".to_vec())).unwrap();
        let mut newer = sign(b"newer".to_vec());
        let newest = inside.join("0000000000000002.copy");
        std::fs::write(&newest, &newer).unwrap();
        assert_eq!(choose(folder.path()).unwrap().0, newest);
        let last = newer.len() - 1;
        newer[last] ^= 1;
        std::fs::write(&newest, &newer).unwrap();
        let (path, bytes) = choose(folder.path()).unwrap();
        assert_eq!((path, content(&bytes)), (older, Some(&b"older"[..])));
        for other in [&b""[..], b"gantry-copy-1 00\n", b"\n", &[0; 400]] {
            assert_eq!(content(other), None);
        }
    }
}
