//! The database: constraints, steps under load, secrets, copies, crashes, old files, speed.

mod configuration;
mod clocks;
mod sessions;
mod secrets;
mod survival;

use std::path::Path;

use gantry_common::source::ServerTrust;
use serde_json::{Value, json};

use super::Database;
use crate::model::*;

const NOW: u64 = 1_700_000_000_000;

async fn open(folder: &Path) -> Database {
    Database::open(folder).await.unwrap()
}

fn vcenter(name: &str) -> VCenter {
    let (id, trust) = (Id::draw(NOW), ServerTrust::Thumbprint("ab".repeat(32)));
    let (url, user) = ("https://vc.example".to_owned(), "backup".to_owned());
    VCenter { id, name: name.to_owned(), url, user, trust }
}

fn repository(name: &str) -> Repository {
    serde_json::from_value(json!({
        "id": Id::draw(NOW), "name": name, "mover": "08".repeat(32),
        "address": "gantry://127.0.0.1:9440", "repository_id": "09".repeat(16)
    }))
    .unwrap()
}

fn job(name: &str, vcenter: &VCenter, repository: &Repository) -> Job {
    let selection = Selection { patterns: vec!["*".into()], ..Selection::default() };
    Job::new(Id::draw(NOW), name, vcenter.id, repository.id, selection)
}

fn session(created_ms: u64) -> SessionRecord {
    SessionRecord {
        id: Id::draw(created_ms),
        kind: SessionKind::Backup,
        job: Some(Id([1; 16])),
        name: "nightly".to_owned(),
        trigger: Trigger::Schedule,
        requested_by: None,
        state: SessionState::Pending,
        result: None,
        reason: None,
        created_ms,
        started_ms: None,
        ended_ms: None,
        totals: SessionTotals::default(),
        document: json!({"job": 1}),
    }
}

fn run(session: &SessionRecord, number: usize) -> VmRunRecord {
    VmRunRecord {
        id: Id::draw(session.created_ms),
        session: session.id,
        vm: format!("vm{number}"),
        vm_uuid: Some(format!("uuid{number}")),
        attempt: 1,
        state: "waiting".to_owned(),
        document: Value::Null,
        result: None,
        reason: None,
        point: None,
        created_ms: session.created_ms,
        started_ms: None,
        ended_ms: None,
    }
}

fn event(session: &SessionRecord, text: &str) -> EventRecord {
    let (vm, disk) = (Some("vm1".to_owned()), None);
    let (severity, text) = (Severity::Info, text.to_owned());
    EventRecord { session: session.id, vm, disk, time_ms: NOW, severity, text }
}
