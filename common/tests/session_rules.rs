//! Rules of the two machines that random runs do not come upon: pages, bounds, changed bases.

use gantry_common::extents::Run;
use gantry_common::failure::FailureKind;
use gantry_common::ids::{IdKey, PointId, RepositoryId, SessionId};
use gantry_common::limits;
use gantry_common::session::receiver::{Admission, Receiver};
use gantry_common::session::sender::Sender;
use gantry_common::session::source_port::{SourceCommand, SourceReport};
use gantry_common::session::store_port::{StoreReport, TaskKey};
use gantry_common::session::violation::ProtocolViolation;
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{
    BaseAnswer, BaseChoice, DiskOffer, Mark, MarkKind, Message, SessionKind, SessionOffer,
    TicketBytes, ToSource, ToTarget,
};

const SESSION: SessionId = SessionId([1; 16]);
const BLOCKS: u64 = 1 << 20;

fn offer() -> SessionOffer {
    let disk = DiskOffer {
        identity: "disk".into(),
        label: String::new(),
        size_bytes: BLOCKS << 20,
        block_size: BlockSize::M1,
        snapshot: "s".into(),
        read_digest: [0; 32],
        base: BaseChoice::Latest,
        change_id: None,
    };
    SessionOffer {
        name: "vm".into(),
        disks: vec![disk],
        compression: Compression::Optimal,
        created_ms: 0,
        vm_config: Vec::new(),
        retention: None,
    }
}

fn usable(point: u8, damaged: Vec<Run>) -> BaseAnswer {
    BaseAnswer::Usable {
        point: PointId([point; 16]),
        size_bytes: 1 << 20,
        change_id: None,
        damaged,
        mask: Vec::new(),
        fallback_reason: None,
    }
}

/// `count` blocks with a gap after each.
fn separate(count: usize) -> Vec<Run> {
    (0..count as u64).map(|run| Run { first: run * 2, count: 1 }).collect()
}

fn welcome(repository: u8, ticket: Option<TicketBytes>) -> ToSource {
    let repository = RepositoryId([repository; 16]);
    ToSource::Welcome { repository, id_key: IdKey([2; 32]), ticket, credit: 4 }
}

fn connected(sender: &mut Sender<()>) -> Option<TicketBytes> {
    sender.handle_connected(1);
    let ticket = match sender.poll_transmit().map(|transmit| transmit.message) {
        Some(ToTarget::Hello { ticket, .. }) => ticket,
        other => panic!("{other:?} instead of Hello"),
    };
    sender.handle_frame(welcome(1, Some(TicketBytes(vec![7])))).expect("a Welcome");
    let opening = sender.poll_transmit().map(|transmit| transmit.message);
    assert_eq!(opening, Some(ToTarget::OpenTask { task: 0 }));
    ticket
}

fn opened(base: BaseAnswer) -> ToSource {
    ToSource::TaskOpened { task: 0, base, durable: Vec::new(), more: false }
}

#[test]
fn durable_runs_travel_in_pages() {
    let mut receiver: Receiver<()> = Receiver::new(1);
    receiver.handle_connected();
    let (repository, id_key) = (RepositoryId([1; 16]), IdKey([2; 32]));
    let admission = Admission {
        session: SESSION,
        offer: offer(),
        kind: SessionKind::Backup,
        repository,
        id_key,
        ticket: None,
    };
    receiver.handle_hello(admission).unwrap();
    receiver.handle_report(StoreReport::SessionOpened { session: SESSION, committed: None });
    receiver.handle_frame(ToTarget::OpenTask { task: 0 }, None).unwrap();
    let (key, durable) = (TaskKey { session: SESSION, task: 0 }, separate(20_000));
    let base = usable(9, separate(limits::RUNS_MAX));
    let answer = StoreReport::TaskOpened { key, base: base.clone(), durable: durable.clone() };
    receiver.handle_report(answer);

    let mut sender: Sender<()> = Sender::new(SESSION, offer(), None, String::new());
    sender.handle_connected(4);
    let mut pages = 0;
    while let Some(frame) = receiver.poll_transmit() {
        assert_eq!(frame.check(0), Ok(()));
        pages += u32::from(matches!(frame, ToSource::TaskOpened { .. }));
        sender.handle_frame(frame).unwrap();
    }
    assert_eq!(pages, 3);
    let start = SourceCommand::Start { task: 0, id_key, base, durable };
    assert_eq!(sender.poll_command(), Some(start));
}

#[test]
fn more_durable_runs_than_the_bound_are_refused() {
    let mut sender: Sender<()> = Sender::new(SESSION, offer(), None, String::new());
    connected(&mut sender);
    let runs = separate(limits::COVERAGE_RUNS_MAX + 1);
    let mut results = runs.chunks(limits::RUNS_MAX).map(|page| {
        let (base, durable) = (BaseAnswer::NotAsked, page.to_vec());
        sender.handle_frame(ToSource::TaskOpened { task: 0, base, durable, more: true })
    });
    assert!(matches!(results.find(Result::is_err), Some(Err(ProtocolViolation::TooMany { .. }))));
}

#[test]
fn a_base_damaged_in_too_many_places_is_not_used() {
    let mut receiver: Receiver<()> = Receiver::new(1);
    receiver.handle_connected();
    let (repository, id_key) = (RepositoryId([1; 16]), IdKey([2; 32]));
    let admission = Admission {
        session: SESSION,
        offer: offer(),
        kind: SessionKind::Backup,
        repository,
        id_key,
        ticket: None,
    };
    receiver.handle_hello(admission).unwrap();
    receiver.handle_report(StoreReport::SessionOpened { session: SESSION, committed: None });
    receiver.handle_frame(ToTarget::OpenTask { task: 0 }, None).unwrap();
    let key = TaskKey { session: SESSION, task: 0 };
    let base = usable(9, separate(limits::RUNS_MAX + 1));
    receiver.handle_report(StoreReport::TaskOpened { key, base, durable: Vec::new() });
    let _welcome = receiver.poll_transmit();
    let answer = receiver.poll_transmit();
    assert!(matches!(answer, Some(ToSource::TaskOpened { base: BaseAnswer::Unusable { .. }, .. })));
}

#[test]
fn a_session_whose_base_is_gone_after_a_reconnection_fails() {
    for later in [usable(8, Vec::new()), BaseAnswer::NotAsked] {
        let mut sender: Sender<()> = Sender::new(SESSION, offer(), None, String::new());
        connected(&mut sender);
        sender.handle_frame(opened(usable(9, Vec::new()))).unwrap();
        assert!(matches!(sender.poll_command(), Some(SourceCommand::Start { .. })));
        assert_eq!(connected(&mut sender), Some(TicketBytes(vec![7])), "the newest ticket");
        sender.handle_frame(opened(later)).unwrap();
        let Some(SourceCommand::Failed { failure, .. }) = sender.poll_command() else {
            panic!("the session goes on")
        };
        assert_eq!(failure.kind, FailureKind::Target);
        let told = std::iter::from_fn(|| sender.poll_transmit().map(|transmit| transmit.message));
        let told: Vec<_> = told.collect();
        assert!(matches!(told[..], [ToTarget::GiveUp { .. }, ToTarget::Bye]), "{told:?}");
        assert!(sender.is_finished() && !sender.is_committed());
    }
}

#[test]
fn a_reconnection_to_another_repository_is_refused() {
    let mut sender: Sender<()> = Sender::new(SESSION, offer(), None, String::new());
    connected(&mut sender);
    sender.handle_connected(1);
    let violation = sender.handle_frame(welcome(3, None));
    assert_eq!(violation, Err(ProtocolViolation::Changed { what: "repository" }));
}

#[test]
fn marks_without_a_connection_hold_up_the_pipeline() {
    let mut sender: Sender<()> = Sender::new(SESSION, offer(), None, String::new());
    connected(&mut sender);
    sender.handle_frame(opened(BaseAnswer::NotAsked)).unwrap();
    sender.handle_disconnected();
    for run in separate(limits::COVERAGE_RUNS_MAX) {
        if !sender.accepts_reports() {
            break;
        }
        let mark = Mark { run, kind: MarkKind::Zero };
        sender.handle_report(SourceReport::Marked { task: 0, mark });
    }
    assert!(!sender.accepts_reports());
    connected(&mut sender);
    sender.handle_frame(opened(BaseAnswer::NotAsked)).unwrap();
    while let Some(transmit) = sender.poll_transmit() {
        assert_eq!(transmit.message.check(0), Ok(()));
    }
    assert!(sender.accepts_reports());
}
