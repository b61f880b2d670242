//! The commands of a drill as JSON, and which calls a rule is about.

use std::time::Duration;

use serde::Deserialize;

use super::{About, FaultType, Verdict};

/// Which calls a rule is about; all that is absent fits everything.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The method's name on the wire (`CreateSnapshot_Task`).
    pub method: Option<String>,
    /// The machine's name or the object's id.
    pub object: Option<String>,
    /// `vcenter`, or the host's name.
    pub endpoint: Option<String>,
    /// So many calls pass first.
    #[serde(default)]
    pub skip: u64,
    /// How often it is applied; always, if absent.
    pub count: Option<u64>,
    /// How likely it is applied to a call that fits.
    #[serde(default = "certain", deserialize_with = "probability")]
    pub probability: f64,
}

fn certain() -> f64 {
    1.0
}

fn probability<'de, D: serde::Deserializer<'de>>(input: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(input)?;
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(serde::de::Error::custom("a probability is from 0 to 1"))
}

impl Default for When {
    fn default() -> Self {
        let (method, object, endpoint, count) = (None, None, None, None);
        Self { method, object, endpoint, skip: 0, count, probability: certain() }
    }
}

impl When {
    /// Whether a call fits.
    #[must_use]
    pub fn fits(&self, about: About<'_>) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        let object = is(&self.object, about.object)
            || about.machine.is_some_and(|machine| is(&self.object, machine));
        is(&self.method, about.method) && is(&self.endpoint, about.endpoint) && object
    }
}

/// Something that goes wrong, or is set right.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The method answers with a fault and does nothing.
    MethodFault {
        /// The fault's type.
        fault: FaultType,
        /// Its text.
        message: Option<String>,
        /// Which calls.
        #[serde(default)]
        when: When,
    },
    /// The method's task ends with an error.
    TaskFault {
        /// The fault's type.
        fault: FaultType,
        /// Its text.
        message: Option<String>,
        /// Whether the work is done all the same.
        #[serde(default)]
        done: bool,
        /// Which calls.
        #[serde(default)]
        when: When,
    },
    /// The method's task takes longer.
    SlowTask {
        /// By so much.
        delay_ms: u64,
        /// Which calls.
        #[serde(default)]
        when: When,
    },
    /// The method answers later.
    Delay {
        /// By so much.
        delay_ms: u64,
        /// Which calls.
        #[serde(default)]
        when: When,
    },
    /// The connection is cut before the method does anything.
    Drop {
        /// Which calls.
        #[serde(default)]
        when: When,
    },
    /// The method does its work, and the connection is cut before the answer.
    LoseAnswer {
        /// Which calls.
        #[serde(default)]
        when: When,
    },
    /// The caller's session has expired when the method is called.
    ExpireSession {
        /// Which calls.
        #[serde(default)]
        when: When,
    },
    /// All sessions expire now.
    ExpireSessions {},
    /// Change tracking of a machine's disks begins anew: old change ids are refused.
    CbtReset {
        /// Its name.
        machine: String,
    },
    /// Queries of changed areas leave out areas that did change.
    OmitChanges {
        /// Of this machine; of all, if absent.
        machine: Option<String>,
        /// How likely each area is left out.
        #[serde(default = "certain", deserialize_with = "probability")]
        probability: f64,
        /// Which ones.
        #[serde(default)]
        seed: u64,
        /// Only at the first snapshot where something was left out.
        #[serde(default)]
        once: bool,
    },
    /// Reads of a datastore's file fail where they touch a range.
    ReadError {
        /// `[datastore] folder/file`.
        file: String,
        /// First byte.
        #[serde(default)]
        start: u64,
        /// Length in bytes; to the end, if absent.
        length: Option<u64>,
        /// How many reads fail; all, if absent.
        times: Option<u32>,
    },
    /// Every read of a datastore takes longer.
    ReadLatency {
        /// By so much.
        delay_ms: u64,
    },
    /// Merging a delta fails: consolidation stays needed.
    StuckConsolidation {
        /// Of this machine; of all, if absent.
        machine: Option<String>,
        /// How many times.
        times: u32,
    },
    /// Removing a snapshot fails, and it stays.
    SnapshotStays {
        /// Of this machine; of all, if absent.
        machine: Option<String>,
        /// How many times.
        times: u32,
    },
    /// Somebody else holds a file.
    LockFile {
        /// `[datastore] folder/file`.
        file: String,
    },
    /// vCenter loses a host; the host's own address goes silent.
    HostLoss {
        /// Its name.
        host: String,
        /// Whether its machines die with it (change tracking begins anew).
        #[serde(default)]
        crash: bool,
    },
    /// A lost host comes back; what died with it stays off.
    HostReturn {
        /// Its name.
        host: String,
    },
    /// Hosts lose a datastore.
    DatastoreLoss {
        /// Its name.
        datastore: String,
    },
    /// A lost datastore comes back.
    DatastoreReturn {
        /// Its name.
        datastore: String,
    },
    /// How many NFC leases may be open at a time.
    LeaseLimit {
        /// So many.
        open: usize,
    },
    /// A machine's guest writes to its disks until it is stopped.
    GuestStart {
        /// Its name.
        machine: String,
        /// Writes in a second on each disk; 0 is as fast as it goes.
        writes_per_second: u32,
    },
    /// A machine's guest stops writing.
    GuestStop {
        /// Its name.
        machine: String,
    },
    /// What a machine's disks hold at every snapshot is remembered from now on.
    Watch {
        /// Its name.
        machine: String,
    },
    /// A machine's tools stop: no guest operations, no quiescing.
    ToolsStop {
        /// Its name.
        machine: String,
    },
    /// A machine's tools run again.
    ToolsStart {
        /// Its name.
        machine: String,
    },
    /// All rules and faults of storage end. Lost hosts and datastores stay lost.
    Clear {},
}

impl Command {
    /// Which calls it is about, if it is a rule.
    #[must_use]
    pub fn when(&self) -> Option<&When> {
        match self {
            Self::MethodFault { when, .. }
            | Self::TaskFault { when, .. }
            | Self::SlowTask { when, .. }
            | Self::Delay { when, .. }
            | Self::Drop { when }
            | Self::LoseAnswer { when }
            | Self::ExpireSession { when } => Some(when),
            _ => None,
        }
    }

    /// Adds what a rule does to a call.
    pub(super) fn judge(&self, verdict: &mut Verdict) {
        match self {
            Self::MethodFault { fault, message, .. } => {
                verdict.fault = Some(fault.fault(message.as_ref()));
            }
            Self::TaskFault { fault, message, done, .. } => {
                verdict.task.fault = Some(fault.fault(message.as_ref()));
                verdict.task.done = *done;
            }
            Self::SlowTask { delay_ms, .. } => {
                verdict.task.delay += Duration::from_millis(*delay_ms);
            }
            Self::Delay { delay_ms, .. } => verdict.delay += Duration::from_millis(*delay_ms),
            Self::Drop { .. } => verdict.drop = true,
            Self::LoseAnswer { .. } => verdict.lose_answer = true,
            Self::ExpireSession { .. } => verdict.expire_session = true,
            _ => {}
        }
    }
}
