//! Looks at jobs under a clock of their own: nights pass in milliseconds.

use gantry_database::model::{Selection, TimeOfDay};
use gantry_scheduler::schedule::{Missed, RetryPlan, Weekdays, Window};
use jiff::civil::time;

use super::*;
use crate::daemon::sessions::new_session;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn ms(text: &str) -> u64 {
    milliseconds(at(text))
}

fn job(schedule: gantry_database::model::Schedule) -> Job {
    let id = Id::draw(1);
    let mut job = Job::new(id, "nightly", id, id, Selection::default());
    job.schedule = schedule;
    job
}

fn every(minutes: u32) -> Calendar {
    let when = When::Every { minutes, offset_minutes: 0 };
    Calendar { when, zone: Zone::utc(), missed: Missed::RunOnceNow }
}

fn nights() -> Windows {
    let window = Window { days: Weekdays::ALL, from: time(22, 0, 0, 0), until: time(6, 0, 0, 0) };
    Windows { zone: Zone::utc(), windows: vec![window] }
}

/// Looks every five seconds while gantryd is up; the instants at which a run begins.
fn runs(
    calendar: &Calendar,
    windows: &Windows,
    (from, until): (&str, &str),
    is_up: impl Fn(Timestamp) -> bool,
) -> Vec<(String, bool)> {
    let (mut now, mut clock_ms) = (at(from), ms(from));
    let mut begun = Vec::new();
    while now < at(until) {
        if is_up(now) {
            let looked = look(calendar, windows, clock_ms, now);
            if let Some(Due::Begin { is_late, .. }) = &looked.due {
                begun.push((now.to_string(), *is_late));
            }
            clock_ms = looked.handled_ms.unwrap_or(clock_ms);
        }
        now += LOOK_EVERY;
    }
    begun
}

#[test]
fn a_periodic_job_begins_on_time_and_once() {
    let always = Windows::always();
    let span = ("2026-07-06T00:00:01Z", "2026-07-06T02:30:00Z");
    let begun = runs(&every(60), &always, span, |_| true);
    let expected = [("2026-07-06T01:00:01Z", false), ("2026-07-06T02:00:01Z", false)];
    assert_eq!(begun, expected.map(|(at, late)| (at.to_owned(), late)));
}

#[test]
fn what_was_missed_is_made_good_once_and_said() {
    let (from, back) = (at("2026-07-06T00:30:00Z"), at("2026-07-06T04:10:00Z"));
    let span = ("2026-07-06T00:00:01Z", "2026-07-06T05:30:00Z");
    let begun = runs(&every(60), &Windows::always(), span, |now| now < from || now >= back);
    let expected = [("2026-07-06T04:10:01Z", true), ("2026-07-06T05:00:01Z", false)];
    assert_eq!(begun, expected.map(|(at, late)| (at.to_owned(), late)));
    let looked = look(&every(60), &Windows::always(), milliseconds(from), back);
    let Some(Due::Begin { why, .. }) = looked.due else { panic!("{looked:?}") };
    assert!(why.contains("2026-07-06 01:00 (UTC)"), "{why}");
}

#[test]
fn nothing_begins_while_the_window_is_closed() {
    let span = ("2026-07-06T12:00:01Z", "2026-07-07T12:00:00Z");
    let begun = runs(&every(240), &nights(), span, |_| true);
    let hours: Vec<&str> = begun.iter().map(|(at, _)| &at[11..13]).collect();
    assert_eq!(hours, ["00", "04"]);
    let looked =
        look(&every(60), &nights(), ms("2026-07-06T12:30:00Z"), at("2026-07-06T13:00:01Z"));
    assert!(matches!(looked.due, Some(Due::PassOver(_))), "{looked:?}");
    assert!(looked.handled_ms.is_some(), "it is not passed over again and again");
}

#[test]
fn a_job_follows_each_good_session_of_another_once() {
    let first = job(gantry_database::model::Schedule::Manual);
    let follower = job(gantry_database::model::Schedule::After { job: first.id });
    let calendar = times::calendar(&follower).unwrap();
    let mut ended = new_session(&first, Trigger::Manual, false, None);
    ended.ended_ms = Some(1_000);
    ended.result = Some(SessionResult::Success);
    let look = |ended: &SessionRecord, clock_ms| {
        look_after(
            &calendar,
            &Windows::always(),
            (clock_ms, Some(ended)),
            at("2026-07-06T12:00:00Z"),
        )
    };
    let looked = look(&ended, 999);
    assert!(matches!(looked.due, Some(Due::Begin { trigger: Trigger::AfterJob, .. })));
    assert_eq!(look(&ended, looked.handled_ms.unwrap()).due, None);
    ended.result = Some(SessionResult::Failed);
    assert!(matches!(look(&ended, 999).due, Some(Due::PassOver(_))));
    let closed = look_after(&calendar, &nights(), (999, Some(&ended)), at("2026-07-06T12:00:00Z"));
    assert!(matches!(closed.due, Some(Due::PassOver(_))));
}

#[test]
fn a_job_that_cannot_be_understood_begins_nothing_and_is_read_again_once_it_changed() {
    let mut plans = BTreeMap::new();
    let at = TimeOfDay::new(22, 0).unwrap();
    let mut job = job(gantry_database::model::Schedule::Daily { at, days: Vec::new() });
    job.time_zone = "Mars/Olympus".to_owned();
    let mut stored = Stored { version: 1, created_ms: 0, changed_ms: 0, value: job };
    assert!(plan(&mut plans, &stored).times.is_none());
    stored.value.time_zone = "Europe/Berlin".to_owned();
    stored.version = 2;
    assert!(plan(&mut plans, &stored).times.is_some());
    let usual = times::retries(&stored.value);
    assert_eq!(usual, RetryPlan::default(), "both name three times, ten minutes");
}
