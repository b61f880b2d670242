//! The successor of a mover that is gone without a word.
//!
//! In: a new session of a VM that has another one running. Out: the old one ended, if its mover is
//! silent; its progress is durable then, and the successor resumes. Invariant: a mover that shows
//! any sign of life keeps its session (the store then refuses the new one). Without this a killed
//! mover's VM would be busy until the transport gives it up (`Options::idle`).

use std::time::Duration;

use gantry_common::ids::SessionId;
use gantry_common::session::receiver::Admission;

use super::Repository;
use crate::transport::{CloseReason, FrameSender, Options};

/// How often signs of life are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// What a sign of life may take longer than the time between two of them.
const LATE: Duration = Duration::from_secs(1);
/// Longest that a session takes to make its progress durable and to go.
const GONE_WITHIN: Duration = Duration::from_secs(60);

impl Repository {
    /// Ends other sessions that must not run beside this one and whose movers are silent, and waits
    /// until they have gone.
    pub(super) async fn make_way(&self, admission: &Admission) {
        let session = admission.session;
        // More than one: successors that waited here as well may have died meanwhile.
        while let Some((holder, frames)) = self.holder(admission) {
            if shows_life(&frames).await {
                return;
            }
            tracing::warn!(%holder, "the mover of this session is silent: {session} takes over");
            frames.close(CloseReason::Failed("silent while its successor waits".into()));
            drop(frames);
            let gone = async {
                while self.sessions.borrow().contains_key(&holder) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            if tokio::time::timeout(GONE_WITHIN, gone).await.is_err() {
                // The store says who holds the VM.
                return;
            }
        }
    }

    fn holder(&self, new: &Admission) -> Option<(SessionId, FrameSender)> {
        self.sessions.borrow().iter().find_map(|(id, running)| {
            let other = *id != new.session
                && running.name == new.offer.name
                && new.kind.excludes(&new.offer.disks, running.kind, &running.disks);
            other.then(|| (*id, running.frames.clone()))
        })
    }
}

/// Whether a packet comes while two keep-alives are due. Where packets are not counted (TCP) the
/// system itself says when a peer's process has ended.
async fn shows_life(frames: &FrameSender) -> bool {
    let Some(before) = frames.stats().packets_received else { return true };
    let until = tokio::time::Instant::now() + Options::default().keep_alive + LATE;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK).await;
        if frames.stats().packets_received != Some(before) {
            return true;
        }
    }
    false
}
