//! When a job runs next, and what becomes of runs that a stopped gantryd missed.
//!
//! In: an instant. Out: the next run. Invariants: no run comes twice, whatever clocks do; `every`
//! counts real minutes from one fixed instant, so that it neither drifts nor heeds clock changes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::{Time, date};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::window::plus_days;
use super::{CronSchedule, Weekdays, Zone};
use crate::names::JobName;

/// A run that begins this much late is not a missed one: gantryd looks every few seconds.
const LATE_MAX: SignedDuration = SignedDuration::from_mins(2);

/// Longest period: four weeks.
const EVERY_MINUTES_MAX: u32 = 4 * 7 * 24 * 60;

/// Skipped over in one repeated hour at most: a pattern that comes every minute, and some.
const STEPS_MAX: usize = 2000;

/// What starts a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Only a person.
    Manual,
    /// At a time on some days of the week.
    Daily {
        /// On the clock of the calendar's zone.
        at: Time,
        /// On these days.
        days: Weekdays,
    },
    /// Every so many real minutes. For every day at one time take [`When::Daily`].
    Every {
        /// 1 to four weeks; beyond is taken as four weeks, 0 as 1.
        minutes: u32,
        /// Counted from midnight of Monday, 3 January 2000, in the calendar's zone.
        offset_minutes: u32,
    },
    /// By a pattern on the clock of the calendar's zone.
    Cron(CronSchedule),
    /// After another job.
    After {
        /// Which.
        job: JobName,
        /// Also when it failed.
        also_failed: bool,
    },
}

/// What becomes of runs that came while gantryd did not run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// One run for all of them, at once.
    #[default]
    RunOnceNow,
    /// None: wait for the next.
    Wait,
}

/// When a job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calendar {
    /// What starts it.
    pub when: When,
    /// Whose clock it goes by.
    pub zone: Zone,
    /// After an outage.
    #[serde(default)]
    pub missed: Missed,
}

/// A run that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// When it should have begun.
    pub scheduled: Timestamp,
    /// It is far too late: gantryd did not run then.
    pub late: bool,
}

/// What a look at the calendar came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// To be started now.
    pub run: Option<Run>,
    /// To be kept durably before the run starts, and given to the next look.
    pub handled: Timestamp,
    /// When to look again.
    pub next: Option<Timestamp>,
}

impl Calendar {
    /// The first run later than this instant; nothing: none by the clock.
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Manual | When::After { .. } => None,
            When::Every { minutes, offset_minutes } => self.every(*minutes, *offset_minutes, now),
            When::Daily { at, days } => {
                let today = self.zone.clock(now).date();
                let dates = (-1..=14).filter_map(|ahead| plus_days(today, ahead));
                let wanted = dates.filter(|date| days.contains(date.weekday()));
                let runs = wanted.filter_map(|date| self.zone.instant(date.to_datetime(*at)));
                runs.filter(|run| *run > now).min()
            }
            When::Cron(pattern) => {
                let mut clock = self.zone.clock(now);
                for _ in 0..STEPS_MAX {
                    clock = pattern.after(clock)?;
                    // In the second passing of an hour, its times have come already.
                    if let Some(run) = self.zone.instant(clock).filter(|run| *run > now) {
                        return Some(run);
                    }
                }
                None
            }
        }
    }

    fn every(&self, minutes: u32, offset_minutes: u32, now: Timestamp) -> Option<Timestamp> {
        let period = i64::from(minutes.clamp(1, EVERY_MINUTES_MAX)) * 60;
        let anchor = self.zone.instant(date(2000, 1, 3).at(0, 0, 0, 0))?.as_second();
        let first = anchor + i64::from(offset_minutes) * 60;
        let periods = (now.as_second() - first).div_euclid(period) + 1;
        Timestamp::from_second(first + periods * period).ok()
    }

    /// What is due at `now`, `handled` being the instant up to which runs were looked after: when the
    /// job was made, enabled or given this calendar, then what the last look said. A clock that was set back brings no
    /// run twice.
    pub fn look(&self, handled: Timestamp, now: Timestamp) -> Look {
        if now <= handled {
            return Look { run: None, handled, next: self.next_after(handled) };
        }
        let next = self.next_after(now);
        let on_time = now.checked_sub(LATE_MAX).unwrap_or(handled).max(handled);
        let in_time = self.next_after(on_time).filter(|run| *run <= now);
        let run = match (in_time, self.missed) {
            (Some(scheduled), _) => Some(Run { scheduled, late: false }),
            (None, Missed::Wait) => None,
            (None, Missed::RunOnceNow) => {
                let missed = self.next_after(handled).filter(|run| *run <= now);
                missed.map(|scheduled| Run { scheduled, late: true })
            }
        };
        Look { run, handled: now, next }
    }

    /// Whether it starts now that another job has ended.
    pub fn follows(&self, ended: &JobName, failed: bool) -> bool {
        match &self.when {
            When::After { job, also_failed } => job == ended && (*also_failed || !failed),
            _ => false,
        }
    }
}

/// Jobs that would wait for each other in a circle, if this map says after which each one runs.
pub fn after_cycle(after: &BTreeMap<JobName, JobName>) -> Option<Vec<JobName>> {
    for start in after.keys() {
        let mut seen = BTreeSet::from([start]);
        let mut road = vec![start.clone()];
        let mut at = start;
        while let Some(next) = after.get(at) {
            if next == start {
                return Some(road);
            }
            if !seen.insert(next) {
                break;
            }
            road.push(next.clone());
            at = next;
        }
    }
    None
}
