//! What is tried again after a session, and when.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Windows;
use crate::names::VmName;

/// How often, and with which pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPlan {
    /// Beyond the first attempt.
    pub retries: u32,
    /// From the end of an attempt to the next, in seconds.
    pub pause_seconds: u32,
}

impl Default for RetryPlan {
    fn default() -> RetryPlan {
        RetryPlan { retries: 3, pause_seconds: 600 }
    }
}

/// What follows an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retry {
    /// Nothing failed.
    Done,
    /// Only these machines are tried again.
    At {
        /// Not before.
        at: Timestamp,
        /// Those that failed.
        vms: BTreeSet<VmName>,
    },
    /// No further attempt is planned; these machines have no point of this session.
    GiveUp {
        /// Those that failed.
        vms: BTreeSet<VmName>,
        /// The backup window would be closed; else all attempts were made.
        window_closed: bool,
    },
}

impl RetryPlan {
    /// What follows the attempt that ended now; `attempts` counts it and all before it.
    pub fn after(
        &self,
        attempts: u32,
        failed: BTreeSet<VmName>,
        ended: Timestamp,
        window: &Windows,
    ) -> Retry {
        if failed.is_empty() {
            return Retry::Done;
        }
        let pause = SignedDuration::from_secs(i64::from(self.pause_seconds));
        match ended.checked_add(pause) {
            Ok(at) if attempts <= self.retries => {
                // Also not if the window closes and opens again meanwhile: that is another night.
                let closed =
                    !window.is_open(ended) || window.closes_at(ended).is_some_and(|end| at >= end);
                if closed {
                    return Retry::GiveUp { vms: failed, window_closed: true };
                }
                Retry::At { at, vms: failed }
            }
            _ => Retry::GiveUp { vms: failed, window_closed: false },
        }
    }
}
