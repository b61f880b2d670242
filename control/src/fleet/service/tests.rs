//! The service against a scripted mover over the real control link, on the loopback.

use std::sync::atomic::{AtomicU8, Ordering};

use gantry_common::control::{
    Answer, CONTROL_PROTOCOL, Command, MoverFacts, Question, Report, RepositoryFacts, TaskOutcome,
    TaskStanding,
};
use gantry_common::enrolment::MoverRole;
use gantry_common::failure::FailureKind;
use gantry_common::ids::{PointId, RepositoryId, SessionId};
use gantry_common::manage::ManageRequest;
use gantry_common::wire::{PointSummary, TicketBytes};
use gantry_common::work::DiskProgress;
use gantry_transport::{
    CertificateAuthority, Claim, ControlConnection, ControlMessage, Revoked, Rights, TicketKey,
    control_connect,
};
use serde::{Deserialize, Serialize};

use super::*;
use crate::fleet::registry::MemoryRegistry;
use crate::fleet::view::TaskEvent;

const DAY: Duration = Duration::from_secs(86_400);
const TASK: TaskId = TaskId([7; 16]);

struct Place {
    authority: CertificateAuthority,
    trust: Trust,
    registry: Arc<MemoryRegistry>,
    fleet: Fleet,
}

fn start(authority: &CertificateAuthority, registry: &Arc<MemoryRegistry>) -> (Fleet, Trust) {
    let pem = authority.certificate_pem().as_bytes();
    let trust = Trust::parse(std::path::Path::new("authority"), pem).unwrap();
    let own = authority.issue_server(&["gantryd.example"], DAY).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let fleet = Fleet::start(address, "gantryd 1", &own, &trust, registry.clone()).unwrap();
    (fleet, trust.expect_name("gantryd.example").unwrap())
}

fn place() -> Place {
    let authority = CertificateAuthority::generate().unwrap();
    let registry = Arc::new(MemoryRegistry::default());
    let (fleet, trust) = start(&authority, &registry);
    Place { authority, trust, registry, fleet }
}

impl Place {
    fn enrol(&self, name: &str) -> Identity {
        let identity = self.authority.issue(name, DAY).unwrap();
        self.registry.insert(EnrolledMover {
            pin: identity.pin(),
            name: name.into(),
            role: MoverRole::Repository,
            ticket_key: Some(ticket_key().to_text()),
        });
        identity
    }

    async fn connect(&self, identity: &Identity) -> ControlConnection {
        let address = self.fleet.address().to_string();
        control_connect(&address, identity, &self.trust).await.unwrap()
    }

    /// A mover that knows these tasks, after its greeting.
    async fn mover(&self, identity: &Identity, tasks: Vec<TaskStanding>) -> ControlConnection {
        let mut mover = self.connect(identity).await;
        mover.sender.send(&hello(tasks)).await.unwrap();
        let Command::Welcome { ticket_key: told, software, .. } = hear(&mut mover).await else {
            panic!("a welcome first")
        };
        assert_eq!((told, &*software), (Some(ticket_key().to_text()), "gantryd 1"));
        mover
    }
}

/// The same for all of one test's process.
fn ticket_key() -> TicketKey {
    TicketKey::from_text(&Secret::new("5a".repeat(32))).unwrap()
}

fn hello(tasks: Vec<TaskStanding>) -> Report {
    let repository = RepositoryFacts {
        id: RepositoryId([5; 16]),
        port: 1,
        path: "/repository".into(),
        capacity_bytes: 10,
        free_bytes: 9,
    };
    let facts = MoverFacts { repository: Some(repository), ..MoverFacts::default() };
    Report::Hello { protocol: CONTROL_PROTOCOL, software: "mover 1".into(), facts, tasks }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

async fn hear(mover: &mut ControlConnection) -> Command {
    within(mover.receiver.receive::<Command>()).await.unwrap().expect("a command")
}

/// Why the fleet has closed the connection.
async fn closed(mover: &mut ControlConnection) -> String {
    loop {
        match within(mover.receiver.receive::<Command>()).await {
            Ok(Some(_)) => {}
            Ok(None) => return String::new(),
            Err(error) => return error.to_string(),
        }
    }
}

#[tokio::test]
async fn a_task_goes_to_its_mover_and_its_end_comes_back() {
    let place = place();
    let identity = place.enrol("store-1");
    let credentials = vec![("cookie".to_owned(), Secret::new("c"))];
    let run = |credentials| place.fleet.run_task(identity.pin(), TASK, b"work".into(), credentials);
    let mut task = run(credentials).unwrap();
    assert!(run(vec![]).is_err(), "once");
    let mut mover = place.mover(&identity, vec![]).await;
    let (content, name) = (Secret::new("c"), "cookie".to_owned());
    assert_eq!(hear(&mut mover).await, Command::SetCredential { task: TASK, name, content });
    assert_eq!(hear(&mut mover).await, Command::Start { task: TASK, work: b"work".into() });
    let disks = vec![DiskProgress { done_bytes: 1, ..DiskProgress::default() }];
    mover.sender.send(&Report::Progress { task: TASK, disks: disks.clone() }).await.unwrap();
    assert_eq!(within(task.next()).await, TaskEvent::Progress(disks));
    task.set_rate(Some(9));
    task.set_credential("cookie", Secret::new("d")).unwrap();
    task.stop();
    let rate = Command::SetRate { task: TASK, bytes_per_second: Some(9) };
    assert_eq!(hear(&mut mover).await, rate);
    assert!(matches!(hear(&mut mover).await, Command::SetCredential { .. }));
    assert_eq!(hear(&mut mover).await, Command::Stop { task: TASK });
    let outcome = TaskOutcome::Stopped;
    mover.sender.send(&Report::Ended { task: TASK, outcome: outcome.clone() }).await.unwrap();
    assert_eq!(within(task.next()).await, TaskEvent::Ended(outcome));
    let view = place.fleet.mover("store-1").unwrap();
    assert!(view.connected_since_ms.is_some() && view.tasks_running == 0, "{view:?}");
    task.forget();
    assert_eq!(hear(&mut mover).await, Command::Forget { task: TASK });
    assert!(place.fleet.mover("store-2").is_none());
}

#[tokio::test]
async fn a_task_outlives_its_connection_and_gantryd() {
    let mut place = place();
    let identity = place.enrol("store-1");
    let task = place.fleet.run_task(identity.pin(), TASK, vec![], vec![]).unwrap();
    let mut mover = place.mover(&identity, vec![]).await;
    assert!(matches!(hear(&mut mover).await, Command::Start { .. }));
    drop(mover);
    let mut mover = place.mover(&identity, vec![]).await;
    assert!(matches!(hear(&mut mover).await, Command::Start { .. }), "it may have been lost");
    // gantryd goes down and comes back; the mover has ended the task meanwhile.
    drop(task);
    let (fleet, trust) = start(&place.authority, &place.registry);
    (place.fleet, place.trust) = (fleet, trust);
    assert_ne!(closed(&mut mover).await, "");
    let mut task = place.fleet.adopt_task(identity.pin(), TASK).unwrap();
    let outcome = TaskOutcome::Done(b"report".into());
    let standing = TaskStanding { task: TASK, ended: Some(outcome.clone()) };
    let orphan = TaskStanding { task: TaskId([8; 16]), ended: None };
    let _mover = place.mover(&identity, vec![standing, orphan]).await;
    assert_eq!(within(task.next()).await, TaskEvent::Ended(outcome.clone()));
    assert_eq!(place.fleet.movers()[0].orphans, [TaskId([8; 16])]);
    // An owner that went away before it wrote the end down hears it again.
    drop(task);
    let mut task = place.fleet.adopt_task(identity.pin(), TASK).unwrap();
    assert_eq!(within(task.next()).await, TaskEvent::Ended(outcome));
}

#[tokio::test]
async fn strangers_and_the_revoked_get_nothing() {
    let place = place();
    let address = place.fleet.address().to_string();
    let other = CertificateAuthority::generate().unwrap().issue("store-1", DAY).unwrap();
    let refused = match control_connect(&address, &other, &place.trust).await {
        Ok(mut mover) => closed(&mut mover).await,
        Err(error) => error.to_string(),
    };
    assert!(refused.contains("refuses our certificate"), "{refused}");
    let stranger = place.authority.issue("store-1", DAY).unwrap();
    let refused = closed(&mut place.connect(&stranger).await).await;
    assert!(refused.contains("not enrolled here"), "{refused}");
    assert!(place.fleet.movers().is_empty());

    let identity = place.enrol("store-1");
    let mut task = place.fleet.run_task(identity.pin(), TASK, vec![], vec![]).unwrap();
    let mut mover = place.mover(&identity, vec![]).await;
    place.registry.revoke(identity.pin());
    place.fleet.revoke(identity.pin());
    let refused = closed(&mut mover).await;
    assert!(refused.contains("was revoked"), "{refused}");
    assert!(matches!(within(task.next()).await, TaskEvent::Ended(TaskOutcome::Died(_))));
    let refused = closed(&mut place.connect(&identity).await).await;
    assert!(refused.contains("was revoked"), "{refused}");
    assert!(place.fleet.facts(identity.pin()).await.is_err());
}

/// Bytes that no mover of this protocol sends.
#[derive(Serialize, Deserialize)]
struct Rubbish(Vec<u8>);

impl ControlMessage for Rubbish {
    const BYTES_MAX: u32 = u32::MAX;
}

#[tokio::test]
async fn what_is_too_long_or_no_message_ends_the_connection() {
    let place = place();
    let identity = place.enrol("store-1");
    let too_long = gantry_common::control::REPORT_BYTES_MAX as usize + 1;
    for (rubbish, why) in [(vec![0xff; 100], "no message"), (vec![0; too_long], "are allowed")] {
        let mut mover = place.mover(&identity, vec![]).await;
        // The other end may close before it has all of it.
        let _ = within(mover.sender.send(&Rubbish(rubbish))).await;
        let refused = closed(&mut mover).await;
        assert!(refused.contains(why), "{refused}");
    }
    // And the next connection is served.
    let mut mover = place.mover(&identity, vec![]).await;
    mover.sender.send(&hello(vec![])).await.unwrap();
    assert!(closed(&mut mover).await.contains("Hello twice"));
    assert!(place.fleet.movers()[0].refused.is_some());
}

#[tokio::test]
async fn questions_are_answered_in_pages_or_end_with_their_connection() {
    let place = place();
    let identity = place.enrol("store-1");
    let pin = identity.pin();
    assert!(
        place.fleet.points(pin, "", false).await.unwrap_err().message.contains("not connected")
    );
    let mut mover = place.mover(&identity, vec![]).await;
    let page = |number: u8| {
        let point = PointSummary {
            point: PointId([number; 16]),
            name: "vm".into(),
            created_ms: 0,
            parent: None,
            flags: Default::default(),
            is_deleted: false,
            disks: vec![],
        };
        Answer::Points(vec![point])
    };
    let pages = AtomicU8::new(0);
    let answering = async {
        let Command::Ask { number, question } = hear(&mut mover).await else {
            panic!("a question")
        };
        assert_eq!(question, Question::Points { name: "vm".into(), deleted: true });
        for more in [true, true, false] {
            let answer = Ok(page(pages.fetch_add(1, Ordering::Relaxed)));
            mover.sender.send(&Report::Answer { number, answer, more }).await.unwrap();
        }
    };
    let (points, ()) = tokio::join!(within(place.fleet.points(pin, "vm", true)), answering);
    assert_eq!(points.unwrap().len(), 3);
    // Who stops waiting leaves nothing behind.
    let brief = Duration::from_millis(50);
    assert!(tokio::time::timeout(brief, place.fleet.facts(pin)).await.is_err());
    assert!(place.fleet.shared.core().asks.is_empty());
    assert!(matches!(hear(&mut mover).await, Command::Ask { .. }));
    let asking = within(place.fleet.manage(pin, ManageRequest::Stat));
    let leaving = async {
        assert!(matches!(hear(&mut mover).await, Command::Ask { .. }));
        drop(mover);
    };
    let (answer, ()) = tokio::join!(asking, leaving);
    assert_eq!(answer.unwrap_err().kind, FailureKind::Network);
}

#[tokio::test]
async fn tickets_are_made_with_the_repositorys_key() {
    let place = place();
    let identity = place.enrol("store-1");
    let (session, peer) = (SessionId([1; 16]), PeerId([2; 32]));
    let ask = |repository, valid_for| {
        place.fleet.ticket(repository, session, peer, "vm", Rights::BACKUP, valid_for)
    };
    assert!(ask(identity.pin(), DAY).await.is_err(), "its repository is not known yet");
    let _mover = place.mover(&identity, vec![]).await;
    assert!(ask(PeerId([9; 32]), DAY).await.is_err());
    assert!(ask(identity.pin(), DAY * 8).await.is_err());
    let hex = ask(identity.pin(), DAY).await.unwrap();
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    let bytes = TicketBytes(bytes.collect::<Result<_, _>>().unwrap());
    let repository = RepositoryId([5; 16]);
    let claim = Claim { session, repository, peer, name: "vm", rights: Rights::BACKUP };
    let now_ms = place.fleet.shared.now_ms();
    ticket_key().verify(&bytes, &claim, now_ms, &Revoked::default()).unwrap();
    let late_ms = now_ms + 2 * DAY.as_millis() as u64;
    assert!(ticket_key().verify(&bytes, &claim, late_ms, &Revoked::default()).is_err());
}

#[tokio::test]
async fn changes_are_told_and_a_silent_start_is_not_waited_for() {
    let place = place();
    let identity = place.enrol("store-1");
    let mut changes = place.fleet.changes();
    let _mover = place.mover(&identity, vec![]).await;
    within(changes.wait_for(|changes| *changes >= 2)).await.unwrap();
    assert_eq!(place.fleet.movers()[0].facts.repository.as_ref().unwrap().free_bytes, 9);
}
