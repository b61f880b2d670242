//! A job's schedule, window, retries and active fulls, and a rule's windows, as the scheduler takes
//! them. Pure.
//!
//! In: records, whose times are in a named zone. Out: functions of instants; or what is wrong with a
//! record, for records are checked by form only, and a zone or pattern may still be none.

use gantry_common::failure::{Failure, FailureKind};
use gantry_database::model::{
    ActiveFull, Job, Schedule, SessionRecord, Trigger, WeekWindows, Weekday,
};
use gantry_scheduler::schedule::{
    Calendar, CronSchedule, Missed, RetryPlan, Weekdays, When, Window, Windows, Zone,
};
use jiff::civil::{Date, Time};
use jiff::{Timestamp, ToSpan};

use super::clock::timestamp;
use crate::run::failed;

fn wrong(error: impl std::fmt::Display) -> Failure {
    failed(FailureKind::Usage, error)
}

/// The zone of a record.
///
/// # Errors
/// There is none of this name.
pub(super) fn zone(name: &str) -> Result<Zone, Failure> {
    Zone::named(name).map_err(wrong)
}

fn weekdays(days: &[Weekday]) -> Weekdays {
    use jiff::civil::Weekday as Day;
    let day = |day: &Weekday| match day {
        Weekday::Monday => Day::Monday,
        Weekday::Tuesday => Day::Tuesday,
        Weekday::Wednesday => Day::Wednesday,
        Weekday::Thursday => Day::Thursday,
        Weekday::Friday => Day::Friday,
        Weekday::Saturday => Day::Saturday,
        Weekday::Sunday => Day::Sunday,
    };
    match days {
        [] => Weekdays::ALL,
        some => Weekdays::of(&some.iter().map(day).collect::<Vec<_>>()),
    }
}

/// A minute of a day on a clock; 24:00 is the next day's 00:00.
fn time(minutes: u16) -> Time {
    let minutes = minutes % (24 * 60);
    Time::new((minutes / 60) as i8, (minutes % 60) as i8, 0, 0).unwrap_or_default()
}

/// When a job begins by itself. Another job, after which it runs, goes by its id.
///
/// # Errors
/// Its zone or its pattern is none.
pub(super) fn calendar(job: &Job) -> Result<Calendar, Failure> {
    let when = match &job.schedule {
        Schedule::Manual => When::Manual,
        Schedule::Daily { at, days } => {
            When::Daily { at: time(at.minutes()), days: weekdays(days) }
        }
        Schedule::Periodic { minutes } => When::Every { minutes: *minutes, offset_minutes: 0 },
        Schedule::Cron { text } => When::Cron(CronSchedule::parse(text).map_err(wrong)?),
        Schedule::After { job } => When::After { job: job.to_string().into(), also_failed: false },
    };
    Ok(Calendar { when, zone: zone(&job.time_zone)?, missed: Missed::RunOnceNow })
}

/// Windows of a week in a zone.
///
/// # Errors
/// The zone is none.
pub(super) fn windows(windows: &WeekWindows, time_zone: &str) -> Result<Windows, Failure> {
    let window = |range: &gantry_database::model::TimeRange| Window {
        days: weekdays(&range.days),
        from: time(range.from.minutes()),
        until: time(range.to.minutes()),
    };
    Ok(Windows { zone: zone(time_zone)?, windows: windows.0.iter().map(window).collect() })
}

/// What is tried again.
pub(super) fn retries(job: &Job) -> RetryPlan {
    RetryPlan { retries: job.retries.count, pause_seconds: job.retries.pause_seconds }
}

/// The window that a session keeps to. One that a person began while it was closed keeps to none:
/// that was meant.
pub(super) fn session_windows(job: &Job, session: &SessionRecord) -> Result<Windows, Failure> {
    let windows = windows(&job.window, &job.time_zone)?;
    let is_open = windows.is_open(timestamp(session.created_ms));
    Ok(match session.trigger == Trigger::Manual && !is_open {
        true => Windows::always(),
        false => windows,
    })
}

/// Since when there must have been a session that read everything, for none to be due now; nothing:
/// none is.
pub(super) fn full_due_since(plan: &ActiveFull, zone: &Zone, now: Timestamp) -> Option<Timestamp> {
    let today = zone.clock(now).date();
    let midnight = |date: Date| zone.instant(date.at(0, 0, 0, 0));
    match plan {
        ActiveFull::Never => None,
        ActiveFull::Weekly { days } => {
            weekdays(days).contains(today.weekday()).then(|| midnight(today))?
        }
        ActiveFull::Monthly { day } => {
            let of_month = |date: Date| Date::new(date.year(), date.month(), *day as i8).ok();
            let this = of_month(today)?;
            match this <= today {
                true => midnight(this),
                false => midnight(of_month(today.checked_sub(1.month()).ok()?)?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_database::model::{Id, Selection};

    use super::*;
    use crate::daemon::sessions::new_session;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn job(more: serde_json::Value) -> Job {
        let id = Id::draw(1);
        let mut text =
            serde_json::to_value(Job::new(id, "j", id, id, Selection::default())).unwrap();
        let (all, more) = (text.as_object_mut().unwrap(), more.as_object().unwrap());
        all.extend(more.clone());
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_job_s_times_are_on_the_clock_of_its_zone() {
        let daily = job(serde_json::json!({
            "time_zone": "Europe/Berlin",
            "schedule": { "kind": "daily", "at": "22:00", "days": ["monday"] },
            "window": [{ "from": "22:00", "to": "24:00" }],
        }));
        let calendar = calendar(&daily).unwrap();
        // Monday, 6 July 2026, in summer time.
        let begin = at("2026-07-06T20:00:00Z");
        assert_eq!(calendar.next_after(at("2026-07-01T00:00:00Z")), Some(begin));
        let windows = windows(&daily.window, &daily.time_zone).unwrap();
        assert!(windows.is_open(begin));
        assert_eq!(windows.closes_at(begin), Some(at("2026-07-06T22:00:00Z")));
        let wrong = job(serde_json::json!({ "time_zone": "Mars/Olympus" }));
        assert!(super::calendar(&wrong).unwrap_err().to_string().contains("Mars/Olympus"));
        let never = job(serde_json::json!({
            "schedule": { "kind": "cron", "text": "0 0 30 2 *" },
        }));
        assert!(super::calendar(&never).is_err());
    }

    #[test]
    fn what_a_person_begins_outside_of_the_window_keeps_to_none() {
        let job = job(serde_json::json!({ "window": [{ "from": "22:00", "to": "06:00" }] }));
        let at_noon = |trigger| {
            let mut session = new_session(&job, trigger, false, None);
            session.created_ms = at("2026-07-06T12:00:00Z").as_millisecond() as u64;
            session_windows(&job, &session).unwrap()
        };
        let noon = at("2026-07-06T12:00:00Z");
        assert!(at_noon(Trigger::Manual).is_open(noon));
        assert!(!at_noon(Trigger::Schedule).is_open(noon));
    }

    #[test]
    fn active_fulls_are_due_from_their_day_on() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let since = |plan: &ActiveFull, now: &str| {
            full_due_since(plan, &zone, at(now)).map(|since| since.to_string())
        };
        let weekly = ActiveFull::Weekly { days: vec![Weekday::Saturday] };
        // Saturday, 11 July 2026, begins at 22:00 of Friday in universal time.
        assert_eq!(since(&weekly, "2026-07-10T21:59:00Z"), None);
        let begin = Some("2026-07-10T22:00:00Z".to_owned());
        assert_eq!(since(&weekly, "2026-07-10T22:00:00Z"), begin);
        let monthly = ActiveFull::Monthly { day: 15 };
        assert_eq!(
            since(&monthly, "2026-07-14T12:00:00Z").as_deref(),
            Some("2026-06-14T22:00:00Z")
        );
        assert_eq!(
            since(&monthly, "2026-07-15T12:00:00Z").as_deref(),
            Some("2026-07-14T22:00:00Z")
        );
        assert_eq!(since(&ActiveFull::Never, "2026-07-15T12:00:00Z"), None);
    }
}
