//! Single rules of the fleet, one connection at a time. What breaks is in `simulation`.

use gantry_common::control::{Answer, CONTROL_PROTOCOL, MoverFacts};
use gantry_common::enrolment::MoverRole;

use super::*;

const MOVER: PeerId = PeerId([1; 32]);
const OTHER: PeerId = PeerId([2; 32]);

fn task(number: u8) -> TaskId {
    TaskId([number; 16])
}

pub(super) fn enrolled(pin: PeerId) -> EnrolledMover {
    let ticket_key = Some(Secret::new("key of tickets"));
    let name = format!("mover-{}", pin.0[0]);
    EnrolledMover { pin, name, role: MoverRole::Repository, ticket_key }
}

pub(super) fn hello(tasks: Vec<TaskStanding>) -> Report {
    let software = "gantry-mover 1".into();
    Report::Hello { protocol: CONTROL_PROTOCOL, software, facts: MoverFacts::default(), tasks }
}

fn running(number: u8) -> TaskStanding {
    TaskStanding { task: task(number), ended: None }
}

fn ended(number: u8) -> TaskStanding {
    TaskStanding { task: task(number), ended: Some(TaskOutcome::Done(vec![number])) }
}

/// A mover that is connected and greeted on link 1; what was said until then is gone.
fn fleet(tasks: Vec<TaskStanding>) -> FleetState {
    let mut state = FleetState::new("gantryd 1");
    state.connected(LinkId(1), enrolled(MOVER), 0);
    state.received(LinkId(1), hello(tasks), 0);
    state.take_actions();
    state
}

fn run(state: &mut FleetState, number: u8) {
    let credentials = vec![("cookie".into(), Secret::new("c"))];
    state.run(MOVER, task(number), vec![number], credentials, 0).unwrap();
}

/// Actions in short: what is sent (by link), told, closed.
fn said(state: &mut FleetState) -> Vec<String> {
    let short = |action| match action {
        Action::Send { link, command } => {
            let command = match command {
                Command::Welcome { .. } => "welcome".into(),
                Command::Start { task, .. } => format!("start {}", task.0[0]),
                Command::Stop { task } => format!("stop {}", task.0[0]),
                Command::Forget { task } => format!("forget {}", task.0[0]),
                Command::SetRate { task, .. } => format!("rate {}", task.0[0]),
                Command::SetCredential { task, name, .. } => format!("{name} {}", task.0[0]),
                Command::Ask { number, .. } => format!("ask {number}"),
                Command::Idle => "idle".into(),
            };
            format!("{}: {command}", link.0)
        }
        Action::Close { link, reason } => match reason {
            CloseReason::Refused(text) => format!("refuse {}: {text}", link.0),
            other => format!("close {}: {other:?}", link.0),
        },
        Action::Tell { task, event } => {
            let event = match event {
                TaskEvent::Progress(_) => "progress".into(),
                TaskEvent::Ended(TaskOutcome::Died(_)) => "died".into(),
                TaskEvent::Ended(TaskOutcome::Done(_)) => "done".into(),
                TaskEvent::Ended(outcome) => format!("{outcome:?}"),
                TaskEvent::MoverLost { since_ms } => format!("lost since {since_ms}"),
                TaskEvent::MoverBack => "back".into(),
            };
            format!("{} {event}", task.0[0])
        }
        Action::Reply { ask, reply } => match reply {
            Ok(Answer::Points(points)) => format!("{} points: {}", ask.0, points.len()),
            Ok(_) => format!("{} answered", ask.0),
            Err(failure) => format!("{} failed: {failure}", ask.0),
        },
    };
    state.take_actions().into_iter().map(short).collect()
}

fn reconnect(state: &mut FleetState, link: u64, tasks: Vec<TaskStanding>) -> Vec<String> {
    state.link_lost(LinkId(link - 1));
    state.connected(LinkId(link), enrolled(MOVER), 0);
    state.received(LinkId(link), hello(tasks), 0);
    said(state)
}

#[test]
fn a_task_is_told_until_its_mover_shows_that_it_knows_it() {
    let mut state = FleetState::new("gantryd 1");
    run(&mut state, 7);
    state.connected(LinkId(1), enrolled(MOVER), 0);
    assert!(said(&mut state).is_empty(), "nothing before Hello");
    state.received(LinkId(1), hello(vec![]), 0);
    assert_eq!(said(&mut state), ["1: welcome", "1: cookie 7", "1: start 7"]);
    let again = reconnect(&mut state, 2, vec![]);
    assert_eq!(again, ["2: welcome", "2: cookie 7", "2: start 7"]);
    // It runs: what was asked of it is said again, its start is not.
    state.set_rate(task(7), Some(5), 0);
    assert_eq!(said(&mut state), ["2: rate 7"]);
    let known = reconnect(&mut state, 3, vec![running(7)]);
    assert_eq!(known, ["3: welcome", "3: cookie 7", "3: rate 7"]);
    // Once shown, a mover that comes back without it has lost it.
    assert_eq!(reconnect(&mut state, 4, vec![]), ["4: welcome", "7 died"]);
    assert_eq!(reconnect(&mut state, 5, vec![running(7)]), ["5: welcome", "5: stop 7"]);
}

#[test]
fn an_end_is_told_once_and_forgotten_until_the_mover_has_forgotten() {
    let mut state = fleet(vec![]);
    run(&mut state, 7);
    said(&mut state);
    let end = || Report::Ended { task: task(7), outcome: TaskOutcome::Done(vec![]) };
    for _ in 0..2 {
        state.received(LinkId(1), end(), 0);
    }
    assert_eq!(said(&mut state), ["7 done"]);
    assert_eq!(reconnect(&mut state, 2, vec![ended(7)]), ["2: welcome"]);
    state.forget(MOVER, task(7), 0);
    assert_eq!(said(&mut state), ["2: forget 7"]);
    assert_eq!(reconnect(&mut state, 3, vec![ended(7)]), ["3: welcome", "3: forget 7"]);
    assert_eq!(reconnect(&mut state, 4, vec![]), ["4: welcome"]);
    // From now on its id means nothing: a mover that names it again has an orphan.
    assert_eq!(reconnect(&mut state, 5, vec![ended(7)]), ["5: welcome"]);
    assert_eq!(state.views()[0].orphans, [task(7)]);
}

#[test]
fn tasks_of_an_earlier_life_are_adopted_wherever_they_are() {
    let mut state = fleet(vec![running(1), ended(2)]);
    assert_eq!(state.views()[0].orphans, [task(1), task(2)]);
    for number in 1..=3 {
        state.adopt(MOVER, task(number), 0).unwrap();
    }
    assert_eq!(said(&mut state), ["2 done", "3 died"]);
    assert!(state.adopt(MOVER, task(1), 0).is_err(), "it has an owner");
    assert!(state.adopt(OTHER, task(1), 0).is_err(), "it is elsewhere");
    // Before the mover is heard: assumed to run, until its Hello says otherwise.
    let mut state = FleetState::new("gantryd 2");
    for number in 1..=3 {
        state.adopt(MOVER, task(number), 0).unwrap();
    }
    state.connected(LinkId(1), enrolled(MOVER), 0);
    state.received(LinkId(1), hello(vec![running(1), ended(2)]), 0);
    assert_eq!(said(&mut state), ["1: welcome", "2 done", "3 died"]);
    // Who goes away and comes back hears the end again.
    state.disown(task(2));
    state.adopt(MOVER, task(2), 0).unwrap();
    assert_eq!(said(&mut state), ["2 done"]);
}

#[test]
fn stopping_before_the_mover_can_have_heard_needs_no_mover() {
    let mut state = FleetState::new("gantryd 1");
    run(&mut state, 7);
    state.stop(task(7), 0);
    assert_eq!(said(&mut state), ["7 Stopped"]);
    state.connected(LinkId(1), enrolled(MOVER), 0);
    state.received(LinkId(1), hello(vec![]), 0);
    assert_eq!(said(&mut state), ["1: welcome"]);
    run(&mut state, 8);
    said(&mut state);
    state.link_lost(LinkId(1));
    state.stop(task(8), 0);
    assert!(said(&mut state).is_empty(), "the mover may carry it out");
    assert_eq!(reconnect(&mut state, 2, vec![]), ["2: welcome", "8 Stopped"]);
}

#[test]
fn a_task_that_nobody_wants_is_stopped_then_forgotten() {
    let mut state = fleet(vec![]);
    run(&mut state, 7);
    said(&mut state);
    state.forget(MOVER, task(7), 0);
    assert_eq!(said(&mut state), ["1: stop 7"]);
    assert_eq!(reconnect(&mut state, 2, vec![running(7)]), ["2: welcome", "2: stop 7"]);
    state.received(LinkId(2), Report::Ended { task: task(7), outcome: TaskOutcome::Stopped }, 0);
    assert_eq!(said(&mut state), ["2: forget 7"]);
}

#[test]
fn a_task_that_was_found_dead_is_run_under_its_name() {
    let mut state = fleet(vec![]);
    state.adopt(MOVER, task(7), 0).unwrap();
    assert_eq!(said(&mut state), ["7 died"]);
    state.forget(MOVER, task(7), 0);
    run(&mut state, 7);
    assert_eq!(said(&mut state), ["1: forget 7", "1: cookie 7", "1: start 7"]);
    state.received(LinkId(1), Report::Progress { task: task(7), disks: vec![] }, 0);
    let done = Report::Ended { task: task(7), outcome: TaskOutcome::Done(vec![]) };
    state.received(LinkId(1), done, 0);
    assert_eq!(said(&mut state), ["7 progress", "7 done"]);
}

#[test]
fn silence_is_told_once_and_a_return_too() {
    let mut state = fleet(vec![]);
    run(&mut state, 7);
    said(&mut state);
    state.received(LinkId(1), Report::Progress { task: task(7), disks: vec![] }, 1_000);
    state.tick(12_000);
    state.tick(30_999);
    assert_eq!(said(&mut state), ["7 progress", "1: idle", "1: idle"]);
    state.tick(31_000);
    state.tick(32_000);
    assert_eq!(
        said(&mut state),
        ["close 1: Failed(\"nothing was heard for too long\")", "7 lost since 1000"]
    );
    assert_eq!(state.views()[0].lost_since_ms, Some(1_000));
    state.received(LinkId(1), hello(vec![]), 32_000);
    assert!(said(&mut state).is_empty(), "a closed connection does not count");
    state.connected(LinkId(2), enrolled(MOVER), 40_000);
    state.received(LinkId(2), hello(vec![running(7)]), 40_000);
    assert_eq!(said(&mut state), ["2: welcome", "2: cookie 7", "7 back"]);
    assert_eq!(state.views()[0].connected_since_ms, Some(40_000));
    assert_eq!(state.views()[0].lost_since_ms, None);
}

#[test]
fn what_no_mover_of_this_protocol_says_ends_the_connection() {
    let other = Report::Hello {
        protocol: CONTROL_PROTOCOL + 1,
        software: "m".into(),
        facts: MoverFacts::default(),
        tasks: vec![],
    };
    let early = Report::Idle { load_hundredths: 0, free_bytes: None };
    let twice = hello(vec![running(1), running(1)]);
    let crowd: Vec<_> = (0..limits::MOVER_TASKS_MAX as u32 + 1)
        .map(|number| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_le_bytes());
            TaskStanding { task: TaskId(id), ended: None }
        })
        .collect();
    let long = MoverFacts { host: "h".repeat(5_000), ..MoverFacts::default() };
    let long = Report::Hello {
        protocol: CONTROL_PROTOCOL,
        software: "m".into(),
        facts: long,
        tasks: vec![],
    };
    for (report, what) in [
        (other, "install the same version"),
        (early, "Hello first"),
        (twice, "names a task twice"),
        (hello(crowd), "4097 tasks"),
        (long, "longer names"),
    ] {
        let mut state = FleetState::new("gantryd 1");
        state.connected(LinkId(1), enrolled(MOVER), 0);
        state.received(LinkId(1), report, 0);
        let said = said(&mut state).join("\n");
        assert!(said.starts_with("refuse 1: ") && said.contains(what), "{said}");
        let view = &state.views()[0];
        assert!(view.refused.as_ref().is_some_and(|why| why.contains(what)));
        assert_eq!(view.connected_since_ms, None);
    }
    let mut state = fleet(vec![]);
    state.received(LinkId(1), hello(vec![]), 0);
    assert!(said(&mut state)[0].contains("twice"));
    let mut state = FleetState::new("gantryd 1");
    state.connected(LinkId(1), enrolled(MOVER), 0);
    state.tick(limits::HELLO_MS_MAX);
    assert!(said(&mut state)[0].starts_with("close 1"), "a mover that says nothing");
}

#[test]
fn a_mover_cannot_end_anothers_task_nor_fill_the_memory() {
    let mut state = fleet(vec![]);
    run(&mut state, 7);
    state.connected(LinkId(9), enrolled(OTHER), 0);
    state.received(LinkId(9), hello(vec![ended(7)]), 0);
    said(&mut state);
    state.received(LinkId(9), Report::Ended { task: task(7), outcome: TaskOutcome::Stopped }, 0);
    state.received(LinkId(9), Report::Progress { task: task(7), disks: vec![] }, 0);
    assert!(said(&mut state).is_empty());
    for number in 0..=limits::MOVER_TASKS_MAX as u32 {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        state.received(LinkId(9), Report::Progress { task: TaskId(id), disks: vec![] }, 0);
    }
    assert_eq!(said(&mut state), ["refuse 9: the mover reports more than 4096 tasks"]);
}

#[test]
fn a_revoked_movers_tasks_are_dead_for_their_owners() {
    let mut state = fleet(vec![]);
    run(&mut state, 7);
    said(&mut state);
    state.revoke(MOVER, 5);
    assert_eq!(said(&mut state), ["refuse 1: mover 'mover-1' was revoked", "7 died"]);
    assert!(state.ask(MOVER, Question::Facts, 5).is_err());
    // Let in again: what it went on with is not wanted.
    state.forget(MOVER, task(7), 5);
    assert_eq!(reconnect(&mut state, 2, vec![running(7)]), ["2: welcome", "2: stop 7"]);
}

#[test]
fn answers_are_put_together_and_late_or_foreign_ones_do_not_count() {
    let mut state = fleet(vec![]);
    let points = || Question::Points { name: String::new(), deleted: false };
    let page = |number, more| Report::Answer { number, answer: Ok(Answer::Points(vec![])), more };
    let first = state.ask(MOVER, points(), 0).unwrap();
    state.connected(LinkId(9), enrolled(OTHER), 0);
    state.received(LinkId(9), hello(vec![]), 0);
    said(&mut state);
    state.received(LinkId(9), page(first.0, false), 0);
    state.received(LinkId(1), page(first.0, true), 0);
    assert!(said(&mut state).is_empty());
    state.received(LinkId(1), page(first.0, false), 0);
    state.received(LinkId(1), page(first.0, false), 0);
    assert_eq!(said(&mut state), ["1 points: 0"]);
    let second = state.ask(MOVER, Question::Facts, 0).unwrap();
    state.received(LinkId(1), page(second.0, false), 0);
    state.ask(MOVER, points(), 0).unwrap();
    state.link_lost(LinkId(1));
    let said = said(&mut state);
    assert!(said[1].contains("something else") && said[3].contains("lost before"), "{said:?}");
}

#[test]
fn questions_are_bounded_in_time_and_number() {
    let mut state = fleet(vec![]);
    for _ in 0..limits::MOVER_QUESTIONS_MAX {
        state.ask(MOVER, Question::Facts, 0).unwrap();
    }
    assert!(state.ask(MOVER, Question::Facts, 0).is_err());
    said(&mut state);
    for now_ms in [20_000, 40_000, 60_000, 80_000, 100_000, limits::ANSWER_MS_MAX] {
        let idle = Report::Idle { load_hundredths: 42, free_bytes: None };
        state.received(LinkId(1), idle, now_ms);
        state.tick(now_ms);
    }
    let late = said(&mut state).into_iter().filter(|said| said.contains("within 120 s")).count();
    assert_eq!(late, limits::MOVER_QUESTIONS_MAX);
    assert_eq!(state.views()[0].load_hundredths, 42);
}

#[test]
fn names_of_credentials_cannot_leave_their_folder() {
    let mut state = fleet(vec![]);
    for name in ["", "../x", "a/b", "a.b", "ä", &"n".repeat(65)] {
        let credentials = vec![(name.to_owned(), Secret::new("hush"))];
        let error = state.run(MOVER, task(1), vec![], credentials, 0).unwrap_err();
        assert!(!error.to_string().contains("hush"));
        run(&mut state, 2);
        assert!(state.set_credential(task(2), name, Secret::new("hush"), 0).is_err());
        state.forget(MOVER, task(2), 0);
    }
}
