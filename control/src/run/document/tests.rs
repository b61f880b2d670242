//! The run's state machine: the only ways through it, and what a restart does at each place.

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{SessionId, TaskId};

use super::{DiskTask, Event, Frozen, Outcome, RunDocument, RunState, TaskState};
use crate::transport::TransportMode;

fn disk(key: i32) -> DiskTask {
    DiskTask {
        key,
        label: format!("Hard disk {key}"),
        identity: format!("vc/vm/{key}"),
        size_bytes: 1 << 30,
        datastore: "ds1".into(),
        change_id: None,
        state: TaskState::Waiting,
        failed: Vec::new(),
    }
}

fn frozen() -> Frozen {
    Frozen {
        snapshot: "gantry-backup-1".into(),
        created_ms: 1,
        name: "web".into(),
        vm_config: "{}".into(),
        base: None,
        disks: vec![disk(2000), disk(2001)],
    }
}

fn start(key: i32, task: u8) -> Event {
    let (task, mode) = (TaskId([task; 16]), TransportMode::Https);
    Event::Start { key, task, proxy: "p1".into(), mode }
}

fn held(key: i32, task: u8) -> Event {
    Event::Held { key, task: TaskId([task; 16]), report: serde_json::json!({"held": true}) }
}

fn failure() -> Outcome {
    Outcome::Failed(Failure::new(FailureKind::Source, "no road"))
}

fn run(events: impl IntoIterator<Item = Event>) -> RunDocument {
    let mut document = RunDocument::new(SessionId([1; 16]), "uuid", "web", false);
    for event in events {
        document.apply(event.clone()).unwrap_or_else(|error| panic!("{event:?}: {error}"));
    }
    document
}

fn road() -> Vec<Event> {
    vec![
        Event::Freeze { snapshot: "gantry-backup-1".into() },
        Event::Frozen(frozen()),
        start(2000, 1),
        start(2001, 2),
        held(2001, 2),
        Event::TaskFailed { key: 2000, task: TaskId([1; 16]), is_road_at_fault: true },
        start(2000, 3),
        held(2000, 3),
        Event::AllHeld,
        Event::Committed { point: "p".into() },
        Event::Cleared,
    ]
}

#[test]
fn a_run_goes_its_way_and_remembers_roads_that_failed() {
    let document = run(road());
    assert_eq!(document.state, RunState::Ended { outcome: Outcome::Point("p".into()) });
    let copying = run(road().into_iter().take(6));
    let tried = &copying.frozen.as_ref().unwrap().disks[0].failed;
    assert_eq!(tried, &[("p1".to_owned(), TransportMode::Https)]);
}

#[test]
fn every_event_out_of_its_place_is_refused_and_changes_nothing() {
    let all = road();
    for done in 0..=all.len() {
        let document = run(all.iter().take(done).cloned());
        for (at, event) in all.iter().enumerate() {
            let mut tried = document.clone();
            if at != done && tried.apply(event.clone()).is_err() {
                assert_eq!(tried, document, "after {done}: {event:?}");
            }
        }
        // A point is told only where one was committed, and only once.
        let mut tried = document.clone();
        let committed = tried.apply(Event::Committed { point: "q".into() }).is_ok();
        assert_eq!(committed, done == 9, "after {done}");
        let mut tried = document;
        let cleared = tried.apply(Event::Cleared).is_ok();
        assert_eq!(cleared, done == 10, "after {done}");
    }
}

#[test]
fn giving_up_leads_through_clearing_from_everywhere_but_the_end() {
    for done in 0..=road().len() {
        let mut document = run(road().into_iter().take(done));
        let given_up = document.apply(Event::GiveUp(failure())).is_ok();
        assert_eq!(given_up, done < 10, "after {done}");
        if given_up {
            assert!(document.may_stand());
            document.apply(Event::Cleared).unwrap();
            assert_eq!(document.state, RunState::Ended { outcome: failure() });
        }
    }
}

#[test]
fn a_restart_keeps_what_is_durable_and_makes_a_doubtful_snapshot_anew() {
    for done in 0..=road().len() {
        let before = run(road().into_iter().take(done));
        let text = serde_json::to_string(&before).unwrap();
        let mut after: RunDocument = serde_json::from_str(&text).unwrap();
        assert_eq!(after, before);
        after.restart();
        match done {
            1 => assert_eq!(after.state, RunState::Waiting),
            _ => assert_eq!(after, before, "after {done}"),
        }
    }
}

#[test]
fn a_late_word_of_an_earlier_task_is_not_taken_for_the_present_one_s() {
    let mut document = run(road().into_iter().take(7));
    for late in [
        held(2000, 1),
        Event::TaskFailed { key: 2000, task: TaskId([1; 16]), is_road_at_fault: true },
    ] {
        assert!(document.apply(late).is_err());
    }
    document.apply(held(2000, 3)).unwrap();
    document.apply(Event::AllHeld).unwrap();
    // What the repository lost is read again from the snapshot, which still stands.
    document.apply(Event::Lost { key: 2000 }).unwrap();
    assert!(document.apply(Event::AllHeld).is_err());
    document.apply(start(2000, 4)).unwrap();
}

#[test]
fn a_guest_is_frozen_only_for_a_snapshot_and_success_is_told_once_and_only_of_a_point() {
    let mut document = run([]);
    assert!(document.apply(Event::FreezeGuest).is_err());
    assert!(document.apply(Event::GuestThawed).is_err(), "it was not frozen");
    document.apply(Event::Freeze { snapshot: "s".into() }).unwrap();
    document.apply(Event::FreezeGuest).unwrap();
    document.restart();
    assert!(document.is_guest_frozen && document.state == RunState::Waiting);
    document.apply(Event::GuestThawed).unwrap();
    assert!(document.apply(Event::GuestThawed).is_err(), "once");
    document.apply(Event::GiveUp(failure())).unwrap();
    assert!(document.apply(Event::TellSuccess).is_err(), "there is no point");
    document.state = RunState::Clearing { outcome: Outcome::Point("p".into()) };
    document.apply(Event::TellSuccess).unwrap();
    assert!(document.apply(Event::TellSuccess).is_err(), "once");
}
