//! Calendars, windows and retries, through clock changes in zones of every kind.

use std::collections::BTreeMap;

use jiff::civil::{Time, Weekday, date};
use jiff::{SignedDuration, Timestamp};

use super::{
    Calendar, CronSchedule, Missed, Retry, RetryPlan, Weekdays, When, Window, Windows, Zone,
    after_cycle,
};

/// Half an hour (Lord Howe), a date that was left out (Apia), changes at midnight (Beirut, Havana,
/// Asuncion), Ramadan (Casablanca), no change (Kolkata), and the usual ones.
const ZONES: [&str; 11] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Asia/Beirut",
    "America/Havana",
    "America/Asuncion",
    "Africa/Casablanca",
    "Asia/Kolkata",
    "Pacific/Chatham",
];

fn at(zone: &Zone, year: i16, month: i8, day: i8, hour: i8, minute: i8) -> Timestamp {
    zone.instant(date(year, month, day).at(hour, minute, 0, 0)).expect("an instant")
}

fn berlin() -> Zone {
    Zone::named("Europe/Berlin").expect("built in")
}

fn calendar(zone: &Zone, when: When) -> Calendar {
    Calendar { when, zone: zone.clone(), missed: Missed::RunOnceNow }
}

fn runs(calendar: &Calendar, from: Timestamp, until: Timestamp) -> Vec<Timestamp> {
    let next = |now: &Timestamp| calendar.next_after(*now).filter(|run| *run <= until);
    std::iter::successors(next(&from), next).collect()
}

fn daily(hour: i8, minute: i8) -> When {
    When::Daily { at: Time::constant(hour, minute, 0, 0), days: Weekdays::ALL }
}

#[test]
fn every_day_at_a_time_comes_once_a_day_whatever_clocks_do() {
    for name in ZONES {
        let zone = Zone::named(name).expect(name);
        for (hour, minute) in [(0, 0), (0, 30), (1, 45), (2, 0), (2, 30), (3, 0), (22, 0)] {
            let calendar = calendar(&zone, daily(hour, minute));
            let (from, until) = (at(&zone, 2011, 1, 1, 12, 0), at(&zone, 2012, 12, 31, 12, 0));
            let runs = runs(&calendar, from, until);
            // Apia had no 30 December 2011: what was due then comes at the change, and so does what
            // is due at midnight after it.
            let left_out = u64::from(name == "Pacific/Apia" && (hour, minute) == (0, 0));
            assert_eq!(runs.len() as u64, 730 - left_out, "{name} {hour}:{minute:02}");
            for pair in runs.windows(2) {
                let hours = pair[0].duration_until(pair[1]).as_secs_f64() / 3600.0;
                let most = if name == "Pacific/Apia" { 48.0 } else { 26.0 };
                assert!((0.4..=most).contains(&hours), "{name} {hour}:{minute:02} {pair:?}");
            }
        }
    }
}

#[test]
fn a_later_clock_is_never_an_earlier_instant() {
    for name in ZONES {
        let zone = Zone::named(name).expect(name);
        for year in [2011, 2024, 2026] {
            let clock = date(year, 1, 1).at(0, 0, 0, 0);
            let minutes = (0..366 * 96).map(|quarter| SignedDuration::from_mins(quarter * 15));
            let instants = minutes.map(|ahead| zone.instant(clock + ahead).expect("an instant"));
            let instants: Vec<Timestamp> = instants.collect();
            assert!(instants.is_sorted(), "{name} {year}");
        }
    }
}

#[test]
fn a_skipped_hour_runs_at_the_change_and_a_repeated_one_once() {
    let zone = berlin();
    let spring = runs(
        &calendar(&zone, daily(2, 30)),
        at(&zone, 2026, 3, 28, 12, 0),
        at(&zone, 2026, 3, 29, 12, 0),
    );
    assert_eq!(spring, ["2026-03-29T01:00:00Z".parse().unwrap()]);
    let autumn = runs(
        &calendar(&zone, daily(2, 30)),
        at(&zone, 2026, 10, 24, 12, 0),
        at(&zone, 2026, 10, 25, 12, 0),
    );
    assert_eq!(autumn, ["2026-10-25T00:30:00Z".parse().unwrap()]);
    let hourly = When::Cron(CronSchedule::parse("0 * * * *").unwrap());
    let hourly = calendar(&zone, hourly);
    assert_eq!(runs(&hourly, at(&zone, 2026, 3, 29, 0, 0), at(&zone, 2026, 3, 30, 0, 0)).len(), 23);
    assert_eq!(
        runs(&hourly, at(&zone, 2026, 10, 25, 0, 0), at(&zone, 2026, 10, 26, 0, 0)).len(),
        24
    );
}

#[test]
fn cron_and_daily_agree_and_every_keeps_its_beat() {
    for name in ZONES {
        let zone = Zone::named(name).expect(name);
        let (from, until) = (at(&zone, 2026, 1, 1, 12, 0), at(&zone, 2026, 12, 31, 12, 0));
        let cron = When::Cron(CronSchedule::parse("30 2 * * mon-fri").unwrap());
        let days = When::Daily { at: Time::constant(2, 30, 0, 0), days: Weekdays::WORKING };
        let expected = runs(&calendar(&zone, days), from, until);
        assert_eq!(runs(&calendar(&zone, cron), from, until), expected, "{name}");
        for (minutes, offset_minutes) in [(7, 3), (60, 15), (90, 0), (1440, 120)] {
            let every = calendar(&zone, When::Every { minutes, offset_minutes });
            let beat = SignedDuration::from_mins(i64::from(minutes));
            let runs = runs(&every, from, until);
            assert!(runs.windows(2).all(|pair| pair[0].duration_until(pair[1]) == beat), "{name}");
        }
    }
    let quarter = calendar(&Zone::utc(), When::Every { minutes: 60, offset_minutes: 15 });
    let now: Timestamp = "2026-05-05T10:20:11Z".parse().unwrap();
    assert_eq!(quarter.next_after(now), "2026-05-05T11:15:00Z".parse().ok());
}

#[test]
fn what_was_missed_runs_once_or_waits() {
    let zone = berlin();
    let nightly = calendar(&zone, daily(22, 0));
    let handled = at(&zone, 2026, 5, 1, 23, 0);
    let back = at(&zone, 2026, 5, 5, 9, 0);
    let look = nightly.look(handled, back);
    let run = look.run.expect("one for four nights");
    assert!(run.late && run.scheduled == at(&zone, 2026, 5, 2, 22, 0));
    assert_eq!((look.handled, look.next), (back, Some(at(&zone, 2026, 5, 5, 22, 0))));
    assert_eq!(nightly.look(look.handled, back + SignedDuration::from_secs(5)).run, None);
    let waits = Calendar { missed: Missed::Wait, ..nightly.clone() };
    assert_eq!(waits.look(handled, back).run, None);
    let due = at(&zone, 2026, 5, 5, 22, 0);
    for calendar in [&nightly, &waits] {
        let run = calendar.look(back, due + SignedDuration::from_secs(4)).run.expect("due");
        assert!(!run.late && run.scheduled == due);
        assert_eq!(calendar.look(due, due).run, None, "the clock was set back: nothing twice");
    }
}

#[test]
fn many_looks_start_each_run_once() {
    for seed in 0..20 {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let zone = Zone::named(ZONES[random.usize(..ZONES.len())]).expect("a zone");
        let pattern = ["*/20 * * * *", "15 2 * * *", "0 1-3 * * sun", "30 0 l * *"];
        let pattern = pattern[random.usize(..pattern.len())];
        let calendar = calendar(&zone, When::Cron(CronSchedule::parse(pattern).unwrap()));
        let (from, until) = (at(&zone, 2026, 3, 1, 0, 0), at(&zone, 2026, 4, 15, 0, 0));
        let (mut handled, mut now, mut started) = (from, from, Vec::new());
        while now < until {
            // Sometimes the clock is set back by up to a minute.
            now += SignedDuration::from_secs(random.i64(-60..100));
            let look = calendar.look(handled, now);
            handled = look.handled;
            started.extend(look.run.map(|run| run.scheduled));
        }
        let expected = runs(&calendar, from, handled);
        assert_eq!(started, expected, "seed {seed} {zone} {pattern}");
    }
}

#[test]
fn patterns_that_are_none_are_refused() {
    for wrong in ["", "* * * *", "60 * * * *", "0 0 30 2 *", "* * * * * *", "a b c d e"] {
        assert!(CronSchedule::parse(wrong).is_err(), "{wrong}");
    }
    assert!(CronSchedule::parse(&"*".repeat(10_000)).is_err());
    assert!(Zone::named("Europe/Atlantis").is_err());
}

#[test]
fn a_window_over_midnight_belongs_to_the_day_it_begins_on() {
    let zone = berlin();
    let days = Weekdays::of(&[Weekday::Friday]);
    let (from, until) = (Time::constant(22, 0, 0, 0), Time::constant(6, 0, 0, 0));
    let night = Windows { zone: zone.clone(), windows: vec![Window { days, from, until }] };
    // 6 March 2026 is a Friday.
    for (day, hour, open) in
        [(6, 21, false), (6, 22, true), (7, 5, true), (7, 6, false), (7, 22, false)]
    {
        assert_eq!(night.is_open(at(&zone, 2026, 3, day, hour, 0)), open, "{day} {hour}");
    }
    let end = at(&zone, 2026, 3, 7, 6, 0);
    assert_eq!(night.closes_at(at(&zone, 2026, 3, 6, 23, 0)), Some(end));
    assert_eq!(night.opens_at(end), Some(at(&zone, 2026, 3, 13, 22, 0)));
    assert_eq!(Windows::always().closes_at(end), None);
    assert!(Windows::always().is_open(end));
}

#[test]
fn windows_that_meet_close_at_the_last_and_a_full_week_never() {
    let zone = berlin();
    let window = |from: i8, until: i8| Window {
        days: Weekdays::ALL,
        from: Time::constant(from, 0, 0, 0),
        until: Time::constant(until, 0, 0, 0),
    };
    let two = Windows { zone: zone.clone(), windows: vec![window(20, 0), window(0, 3)] };
    let evening = at(&zone, 2026, 10, 24, 21, 0);
    assert_eq!(two.closes_at(evening), Some(at(&zone, 2026, 10, 25, 3, 0)));
    let whole = Windows { zone: zone.clone(), windows: vec![window(4, 4)] };
    assert!(whole.is_open(evening) && whole.closes_at(evening).is_none());
}

#[test]
fn open_and_its_ends_agree_over_clock_changes() {
    for name in ZONES {
        let zone = Zone::named(name).expect(name);
        let days = Weekdays::of(&[Weekday::Saturday, Weekday::Sunday, Weekday::Monday]);
        let (from, until) = (Time::constant(22, 30, 0, 0), Time::constant(2, 30, 0, 0));
        let windows = Windows { zone: zone.clone(), windows: vec![Window { days, from, until }] };
        let mut now = at(&zone, 2026, 3, 1, 0, 7);
        for _ in 0..9000 {
            now += SignedDuration::from_mins(11);
            let before = |instant: Timestamp| instant - SignedDuration::from_secs(1);
            if windows.is_open(now) {
                let end = windows.closes_at(now).expect("it closes");
                assert!(
                    end > now && !windows.is_open(end) && windows.is_open(before(end)),
                    "{name}"
                );
            } else {
                let begin = windows.opens_at(now).expect("it opens");
                let open = windows.is_open(begin) && !windows.is_open(before(begin));
                assert!(begin > now && open, "{name}");
            }
        }
    }
}

#[test]
fn only_failed_machines_are_tried_again_within_the_window() {
    let zone = berlin();
    let plan = RetryPlan::default();
    let failed = || ["db".into()].into();
    let ended = at(&zone, 2026, 3, 6, 23, 0);
    let always = Windows::always();
    assert_eq!(plan.after(1, [].into(), ended, &always), Retry::Done);
    let at_ten = ended + SignedDuration::from_mins(10);
    assert_eq!(plan.after(3, failed(), ended, &always), Retry::At { at: at_ten, vms: failed() });
    let given_up = |window_closed| Retry::GiveUp { vms: failed(), window_closed };
    assert_eq!(plan.after(4, failed(), ended, &always), given_up(false));
    let (from, until) = (Time::constant(20, 0, 0, 0), Time::constant(23, 5, 0, 0));
    let window = Window { days: Weekdays::ALL, from, until };
    let evening = Windows { zone, windows: vec![window] };
    assert_eq!(plan.after(1, failed(), ended, &evening), given_up(true));
}

#[test]
fn jobs_after_jobs_and_the_text_form() {
    let after = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(job, before)| ((*job).into(), (*before).into())).collect()
    };
    let none: BTreeMap<_, _> = after(&[("b", "a"), ("c", "b"), ("d", "b")]);
    assert_eq!(after_cycle(&none), None);
    let circle: BTreeMap<_, _> = after(&[("x", "a"), ("a", "b"), ("b", "c"), ("c", "a")]);
    assert_eq!(after_cycle(&circle).map(|road| road.len()), Some(3));
    let follows = calendar(&berlin(), When::After { job: "a".into(), also_failed: false });
    assert!(follows.follows(&"a".into(), false) && !follows.follows(&"a".into(), true));
    assert_eq!(follows.next_after(Timestamp::UNIX_EPOCH), None);
    for when in
        [daily(22, 30), When::Cron(CronSchedule::parse("0 2 * * sun").unwrap()), When::Manual]
    {
        let calendar = calendar(&berlin(), when);
        let text = serde_json::to_string(&calendar).unwrap();
        assert_eq!(serde_json::from_str::<Calendar>(&text).unwrap(), calendar, "{text}");
    }
}
