//! Sessions of the backend in memory: begun, carried on by hand, ended.

use crate::access::Principal;
use crate::backend::Answered;
use crate::memory::Memory;
use crate::model::{
    EventRecord, Id, SessionKind, SessionRecord, SessionResult, SessionState, SessionTotals,
    Severity, Trigger,
};
use crate::views::{NumberedEvent, Progress, TaskProgress};

/// Bytes of the one disk of a session.
const DISK_BYTES: u64 = 100 << 20;

pub(super) fn progress(session: &SessionRecord) -> Progress {
    let done_bytes = session.totals.processed_bytes;
    let disk = TaskProgress {
        vm: "web01".to_owned(),
        disk: "Hard disk 1".to_owned(),
        state: "reading".to_owned(),
        done_bytes,
        todo_bytes: DISK_BYTES,
        read_bytes: done_bytes,
        transferred_bytes: done_bytes / 2,
        ..TaskProgress::default()
    };
    let state = session.state;
    let bytes_per_second = 10 << 20;
    Progress { state, bytes_per_second, eta_seconds: None, bottleneck: None, disks: vec![disk] }
}

impl Memory {
    pub(super) fn begin(
        &self,
        kind: SessionKind,
        job: Option<Id>,
        name: &str,
        who: &Principal,
    ) -> Answered<SessionRecord> {
        let id = {
            let mut state = self.lock();
            state.now_ms += 1;
            let session = SessionRecord {
                id: Id::draw(state.now_ms),
                kind,
                job,
                name: name.to_owned(),
                trigger: Trigger::Manual,
                requested_by: Some(who.name.clone()),
                state: SessionState::Running,
                result: None,
                reason: None,
                created_ms: state.now_ms,
                started_ms: Some(state.now_ms),
                ended_ms: None,
                totals: SessionTotals { more: serde_json::json!({}), ..SessionTotals::default() },
                document: serde_json::json!({}),
            };
            let id = session.id;
            state.sessions.insert(id, session);
            id
        };
        Ok(self.advance(id, 0, "it began"))
    }

    /// The unfinished session of a job.
    pub(super) fn running(&self, job: Id) -> Option<Id> {
        let state = self.lock();
        let mut all = state.sessions.values();
        all.find(|session| session.job == Some(job) && !session.is_finished()).map(|one| one.id)
    }

    /// Carries a session on by so many bytes, and tells something of it.
    ///
    /// # Panics
    /// There is no such session.
    pub fn advance(&self, id: Id, bytes: u64, text: &str) -> SessionRecord {
        let mut state = self.lock();
        let time_ms = state.now_ms;
        let events = state.events.entry(id).or_default();
        let number = events.len() as u64 + 1;
        let (text, severity) = (text.to_owned(), Severity::Info);
        let event = EventRecord { session: id, vm: None, disk: None, time_ms, severity, text };
        events.push(NumberedEvent { number, event });
        let session = state.sessions.get_mut(&id).expect("a session that began");
        session.totals.processed_bytes += bytes;
        session.clone()
    }

    /// Ends a session.
    pub fn finish(&self, id: Id) {
        self.advance(id, 0, "it is over");
        if let Some(session) = self.lock().sessions.get_mut(&id) {
            session.state = SessionState::Finished;
            session.result = Some(SessionResult::Success);
            session.ended_ms = Some(session.created_ms + 1);
        }
    }
}
