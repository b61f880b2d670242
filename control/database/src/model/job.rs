//! A job: what is backed up, where to, when and how.
//!
//! Plain data. What refers to other records does so by id; the database sees to it that they exist.

use gantry_common::manage::Retention;
use gantry_common::policy::CbtPolicy;
use gantry_common::transport_mode::TransportMode;
use gantry_common::units::{BlockSize, Compression};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{self, Invalid, invalid};
use super::{
    ActiveFull, ApplicationSettings, Id, Quiesce, Schedule, Selection, WeekWindows, schema, text,
    time,
};

/// Priority of a job that says nothing.
const PRIORITY: u8 = 50;
/// Highest priority.
const PRIORITY_MAX: u8 = 100;

/// A backup job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// What people call it; unique.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Whether its schedule starts it.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// 0 to 100; higher is served first where slots are scarce.
    #[serde(default = "priority")]
    pub priority: u8,
    /// Where its machines are.
    #[schema(value_type = String)]
    pub vcenter: Id,
    /// Which machines and disks.
    pub selection: Selection,
    /// Where to.
    #[schema(value_type = String)]
    pub repository: Id,
    /// Through which proxies.
    #[serde(default)]
    pub proxies: ProxyChoice,
    /// When.
    #[serde(default)]
    pub schedule: Schedule,
    /// Time zone (IANA) of its schedule, window and active fulls.
    #[serde(default = "zone")]
    #[schema(example = "Europe/Berlin")]
    pub time_zone: String,
    /// When it may run; a session that overruns stops cleanly. None: always.
    #[serde(default)]
    pub window: WeekWindows,
    /// What is done about machines that failed.
    #[serde(default)]
    pub retries: Retries,
    /// Which points the repository keeps, applied after success; nothing: all.
    #[serde(default)]
    #[schema(value_type = Option<schema::RetentionSchema>)]
    pub retention: Option<Retention>,
    /// `256K`, `512K`, `1M` or `4M`. A change makes the next session a full.
    #[serde(default, with = "text")]
    #[schema(value_type = String, example = "1M")]
    pub block_size: BlockSize,
    /// `none`, `fast`, `optimal`, `high` or `extreme`.
    #[serde(default, with = "text")]
    #[schema(value_type = String, example = "optimal")]
    pub compression: Compression,
    /// By which roads disks are read.
    #[serde(default)]
    pub transport: TransportPolicy,
    /// Limit on the wire over all its tasks; nothing: only traffic rules limit it.
    #[serde(default)]
    pub rate_bytes_per_second: Option<u64>,
    /// Changed-block tracking.
    #[serde(default)]
    pub cbt: CbtSettings,
    /// When everything is read.
    #[serde(default)]
    pub active_full: ActiveFull,
    /// Whether guests are quiesced.
    #[serde(default)]
    pub quiesce: Quiesce,
    /// Steps in the guests.
    #[serde(default)]
    pub application: ApplicationSettings,
    /// Snapshots of Gantry that a datastore may have at a time.
    #[serde(default = "snapshots")]
    pub snapshots_per_datastore: u32,
}

/// Through which proxies a job reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProxyChoice {
    /// Whichever serves best.
    #[default]
    Automatic,
    /// One of these.
    Chosen {
        /// The proxies.
        #[schema(value_type = Vec<String>)]
        proxies: Vec<Id>,
    },
}

/// What is done about machines that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// Further attempts.
    pub count: u32,
    /// Seconds before each.
    pub pause_seconds: u32,
}

/// By which roads disks are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TransportPolicy {
    /// Allowed modes, in the order in which they are tried; none: all, in Gantry's order.
    #[schema(value_type = Vec<schema::TransportModeSchema>)]
    pub modes: Vec<TransportMode>,
    /// Whether the next mode is tried when one fails.
    pub failover: bool,
}

/// Changed-block tracking of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CbtSettings {
    /// What to do where it cannot serve, against expectation.
    #[schema(value_type = schema::CbtPolicySchema)]
    pub on_full: CbtPolicy,
    /// Whether to switch it on where it is off and can be.
    pub enable: bool,
    /// Percent of the blocks called unchanged that are compared nevertheless.
    pub audit_percent: f64,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries { count: 3, pause_seconds: 600 }
    }
}

impl Default for TransportPolicy {
    fn default() -> TransportPolicy {
        TransportPolicy { modes: Vec::new(), failover: true }
    }
}

impl Default for CbtSettings {
    fn default() -> CbtSettings {
        CbtSettings { on_full: CbtPolicy::default(), enable: true, audit_percent: 0.1 }
    }
}

impl CbtSettings {
    /// The audit's share of a million blocks; nothing if it is switched off with 0.
    pub fn audit_per_million(&self) -> Option<u32> {
        (self.audit_percent > 0.0).then(|| (self.audit_percent * 10_000.0).ceil() as u32)
    }
}

fn yes() -> bool {
    true
}

fn priority() -> u8 {
    PRIORITY
}

fn zone() -> String {
    "UTC".to_owned()
}

fn snapshots() -> u32 {
    4
}

impl Job {
    /// A job with everything as usual.
    pub fn new(id: Id, name: &str, vcenter: Id, repository: Id, selection: Selection) -> Job {
        Job {
            id,
            name: name.to_owned(),
            description: String::new(),
            enabled: true,
            priority: PRIORITY,
            vcenter,
            selection,
            repository,
            proxies: ProxyChoice::default(),
            schedule: Schedule::default(),
            time_zone: zone(),
            window: WeekWindows::default(),
            retries: Retries::default(),
            retention: None,
            block_size: BlockSize::default(),
            compression: Compression::default(),
            transport: TransportPolicy::default(),
            rate_bytes_per_second: None,
            cbt: CbtSettings::default(),
            active_full: ActiveFull::default(),
            quiesce: Quiesce::default(),
            application: ApplicationSettings::default(),
            snapshots_per_datastore: snapshots(),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        if self.description.len() > 4096 {
            return Err(invalid("description", "is too long; give at most 4096 bytes"));
        }
        check::range("priority", self.priority, 0, PRIORITY_MAX)?;
        check::within("selection", self.selection.validate())?;
        if let ProxyChoice::Chosen { proxies } = &self.proxies {
            if proxies.is_empty() {
                let what = "names no proxy; name one, or choose kind automatic";
                return Err(invalid("proxies.proxies", what));
            }
            check::distinct("proxies.proxies", proxies)?;
        }
        check::within("schedule", self.schedule.validate(self.id))?;
        time::zone("time_zone", &self.time_zone)?;
        self.window.validate("window")?;
        check::range("retries.count", self.retries.count, 0, 100)?;
        check::range("retries.pause_seconds", self.retries.pause_seconds, 0, 24 * 3600)?;
        if self.retention.is_some_and(|retention| !retention.has_rule()) {
            let what = "has no rule; give days, points_min or a flag, or leave it out to keep all";
            return Err(invalid("retention", what));
        }
        check::distinct("transport.modes", &self.transport.modes)?;
        check::rate("rate_bytes_per_second", self.rate_bytes_per_second)?;
        check::range("cbt.audit_percent", self.cbt.audit_percent, 0.0, 100.0)?;
        check::within("active_full", self.active_full.validate())?;
        check::within("application", self.application.validate())?;
        check::range("snapshots_per_datastore", self.snapshots_per_datastore, 1, 1000)
    }
}
