//! What a source shows a server to be let in, and how it gets something fresh when that has expired.
//!
//! In: fixed credentials, a private file, or a feed of the control plane. Out: the present ones, and
//! newer ones on demand. vSphere's sessions end after 30 minutes without use of their own kind, so
//! fresh ones are asked for before. Must not: show a secret.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_common::source::HttpAuth;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::transport::read_secret;

/// For fresh credentials to come once they were asked for.
const FRESH_WITHIN: Duration = Duration::from_secs(60);
/// How often a file is looked at while fresh ones are awaited.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Age at which fresh ones are asked for without need: five minutes before vSphere's end of 30.
const RENEWED_AFTER: Duration = Duration::from_secs(25 * 60);

/// Credentials and their number: newer ones have a higher.
#[derive(Debug, Clone)]
pub(super) struct Present {
    pub number: u64,
    pub auth: HttpAuth,
}

#[derive(Debug, Clone)]
enum From {
    Fixed,
    File(PathBuf),
    Feed,
}

/// Where a source's credentials come from. Cloning shares it.
#[derive(Debug, Clone)]
pub struct CredentialSource {
    from: From,
    present: watch::Receiver<Present>,
    give: Arc<watch::Sender<Present>>,
    wanted: Arc<Notify>,
}

/// The other end of a fed [`CredentialSource`]: the control plane's.
#[derive(Debug, Clone)]
pub struct CredentialFeed {
    give: Arc<watch::Sender<Present>>,
    wanted: Arc<Notify>,
}

impl CredentialFeed {
    /// Gives fresh credentials to the source.
    pub fn give(&self, auth: HttpAuth) {
        self.give.send_modify(|present| {
            present.number += 1;
            present.auth = auth;
        });
    }

    /// Ends when the source wants fresh ones: refused, or old. A wish that comes before is kept.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl CredentialSource {
    /// These and no others; a file's are read, and read again when they are refused.
    ///
    /// # Errors
    /// The file cannot be read, is not private or holds none; the text says which.
    pub fn new(auth: &HttpAuth) -> Result<CredentialSource, String> {
        let (from, auth) = match auth {
            HttpAuth::File(path) => (From::File(path.clone()), read(path)?),
            other => (From::Fixed, other.clone()),
        };
        Ok(CredentialSource::of(from, auth).0)
    }

    /// These at first, then what is fed.
    pub fn fed(first: HttpAuth) -> (CredentialSource, CredentialFeed) {
        CredentialSource::of(From::Feed, first)
    }

    fn of(from: From, auth: HttpAuth) -> (CredentialSource, CredentialFeed) {
        let (give, present) = watch::channel(Present { number: 0, auth });
        let (give, wanted) = (Arc::new(give), Arc::new(Notify::new()));
        let feed = CredentialFeed { give: Arc::clone(&give), wanted: Arc::clone(&wanted) };
        (CredentialSource { from, present, give, wanted }, feed)
    }

    /// Those to use now.
    pub(super) fn present(&self) -> Present {
        self.present.borrow().clone()
    }

    /// Newer ones than number `refused`, waiting for them; nothing if none came.
    pub(super) async fn fresh(&self, refused: u64) -> Option<Present> {
        let fresh = async {
            let mut present = self.present.clone();
            self.wanted.notify_one();
            loop {
                if let From::File(path) = &self.from {
                    self.read_again(path);
                }
                let newer = present.wait_for(|present| present.number > refused);
                match (&self.from, tokio::time::timeout(LOOK_EVERY, newer).await) {
                    (_, Ok(Ok(present))) => return Some(present.clone()),
                    (From::Fixed, _) | (_, Ok(Err(_))) => return None,
                    (_, Err(_)) => {}
                }
            }
        };
        tokio::time::timeout(FRESH_WITHIN, fresh).await.ok().flatten()
    }

    /// Takes what a file holds, if that is something else than before.
    fn read_again(&self, path: &Path) {
        // One that cannot be read now may be in the midst of being replaced.
        let Ok(auth) = read(path) else { return };
        self.give.send_if_modified(|present| {
            let newer = present.auth != auth;
            if newer {
                present.number += 1;
                present.auth = auth;
            }
            newer
        });
    }

    /// Asks for fresh ones before the present ones expire, again and again; never ends.
    pub(super) async fn keep_fresh(&self) {
        let mut present = self.present.clone();
        loop {
            let due = Instant::now() + RENEWED_AFTER;
            present.mark_unchanged();
            tokio::select! {
                changed = present.changed() => if changed.is_err() { std::future::pending().await },
                () = tokio::time::sleep_until(due) => {
                    self.wanted.notify_one();
                    if let From::File(path) = &self.from {
                        self.read_again(path);
                    }
                }
            }
        }
    }
}

/// One [`HttpAuth`] as JSON, itself no file.
fn read(path: &Path) -> Result<HttpAuth, String> {
    let bytes = read_secret(path).map_err(|error| error.to_string())?;
    // The parser's own error could quote the secret.
    match serde_json::from_slice(&bytes) {
        Ok(HttpAuth::File(_)) | Err(_) => {
            Err(format!("{}: no JSON of a cookie, ticket or user and password", path.display()))
        }
        Ok(auth) => Ok(auth),
    }
}

#[cfg(test)]
mod tests {
    use super::{CredentialSource, HttpAuth};
    use gantry_common::secret::Secret;
    use std::time::Duration;

    fn cookie(text: &str) -> HttpAuth {
        HttpAuth::Cookie(Secret::new(text))
    }

    #[tokio::test(start_paused = true)]
    async fn fed_credentials_are_asked_for_when_refused_and_before_they_expire() {
        let (source, feed) = CredentialSource::fed(cookie("one"));
        let (first, waiting) = (source.present(), source.clone());
        let fresh = tokio::spawn(async move { waiting.fresh(0).await });
        feed.wanted().await;
        feed.give(cookie("two"));
        let second = fresh.await.unwrap().unwrap();
        assert_eq!((first.number, second.number, second.auth), (0, 1, cookie("two")));
        assert!(source.fresh(1).await.is_none(), "none came in time");
        feed.wanted().await;
        let keeper = source.clone();
        let keeping = tokio::spawn(async move { keeper.keep_fresh().await });
        let early = tokio::time::timeout(Duration::from_secs(24 * 60), feed.wanted()).await;
        assert!(early.is_err());
        tokio::time::timeout(Duration::from_secs(2 * 60), feed.wanted()).await.unwrap();
        keeping.abort();
    }

    #[tokio::test]
    async fn a_file_is_read_again_and_fixed_ones_are_final() {
        let fixed = CredentialSource::new(&cookie("x")).unwrap();
        assert!(fixed.fresh(0).await.is_none());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        let write = |auth: &HttpAuth| {
            let draft = folder.path().join("draft");
            let _ = std::fs::remove_file(&draft);
            crate::transport::write_secret(&draft, &serde_json::to_vec(auth).unwrap()).unwrap();
            std::fs::rename(&draft, &path).unwrap();
        };
        write(&cookie("one"));
        let source = CredentialSource::new(&HttpAuth::File(path.clone())).unwrap();
        assert_eq!(source.present().auth, cookie("one"));
        write(&cookie("two"));
        assert_eq!(source.fresh(0).await.unwrap().auth, cookie("two"));
        assert!(!format!("{source:?}").contains("two"));
        write(&HttpAuth::File(path.clone()));
        assert!(CredentialSource::new(&HttpAuth::File(path.clone())).is_err());
    }
}
