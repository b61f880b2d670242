//! A run: one backup of one virtual machine, from the judgement of the machine to the last undo.
//!
//! In: a [`Context`] (broker, settings, ledger, the [`site::Site`] that has proxies and keeps the
//! document) and a [`document::RunDocument`], new or left by an interrupted control plane. Out: a
//! committed restore point or the reason why there is none, and a log with the reason for every
//! choice. `prepare` judges, `guest` runs the job's scripts in the guest, `drive` walks the states, `disk` copies one disk by one proxy after the
//! other, `roads` makes and ends what each transport mode needs, `changes` says what is read.
//! Invariants: the document is saved before each step; what is made in vSphere stands in the ledger
//! before and is undone afterwards, whatever happened; disks are detached before the snapshot goes;
//! the snapshot stays until every disk is durable and the point is committed, or the run gives up.

use std::collections::BTreeMap;
use std::fmt::Display;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::source::ServerTrust;
use gantry_http::Endpoint;

use crate::broker::Broker;
use crate::ledger::{Ledger, LedgerError};
use crate::mover::MoverError;
use crate::vcenter::VCenter;

pub mod changes;
mod disk;
pub mod document;
mod drive;
pub mod guest;
pub mod prepare;
pub mod removal;
pub mod report;
mod roads;
pub mod settings;
pub mod site;
mod made_vm;
pub mod undo;

pub use drive::{drive, now_ms, random_id};

use settings::RunSettings;
use site::{Severity, Site};

/// What a run works with.
pub struct Context<'a, S> {
    /// Its vCenter's facts.
    pub broker: &'a Broker,
    /// vCenter's instance UUID.
    pub vcenter_id: &'a str,
    /// Where vCenter is reached, as a mover is told it.
    pub endpoint: &'a Endpoint,
    /// Whose certificate it shows.
    pub trust: &'a ServerTrust,
    /// This installation and vCenter, for the snapshot's mark.
    pub owner: &'a str,
    /// How to back up.
    pub settings: &'a RunSettings,
    /// What is done in the guest; nothing: nothing.
    pub guest: Option<&'a guest::GuestSteps>,
    /// Disks that the job leaves out, by device key, with the rule in words.
    pub excluded: &'a BTreeMap<i32, String>,
    /// What stands in vSphere until it is undone.
    pub ledger: &'a Ledger,
    /// The place where it runs.
    pub site: &'a S,
}

impl<S: Site> Context<'_, S> {
    fn say(&self, severity: Severity, disk: Option<&str>, text: &str) {
        self.site.say(severity, disk, text);
    }

    fn info(&self, disk: Option<&str>, text: &str) {
        self.say(Severity::Info, disk, text);
    }

    fn warn(&self, disk: Option<&str>, text: &str) {
        self.say(Severity::Warning, disk, text);
    }
}

/// By what points and the ledger name this vCenter: its instance UUID. An ESXi host has none.
///
/// # Errors
/// As any call.
pub async fn vcenter_id(vcenter: &VCenter) -> Result<String, Failure> {
    let content = vcenter.content().await.map_err(|error| error.failure())?;
    let host = || format!("esxi {}", vcenter.http().endpoint());
    Ok(content.instance_uuid.clone().unwrap_or_else(host))
}

pub(crate) fn failed(kind: FailureKind, text: impl Display) -> Failure {
    Failure::new(kind, text.to_string())
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Failure {
        failed(FailureKind::Internal, error)
    }
}

impl From<MoverError> for Failure {
    fn from(error: MoverError) -> Failure {
        match error {
            MoverError::Failed(failure) => failure,
            other => failed(FailureKind::Internal, other),
        }
    }
}
