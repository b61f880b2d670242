//! Windows of the week: when backups may run, when a traffic rule holds.
//!
//! In: an instant. Out: open or not, and when that changes. A window belongs to the day on which it
//! begins; one that ends at or before the time at which it begins goes on into the next day.

use jiff::civil::{Date, Time};
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Weekdays, Zone};

/// What never closes within this many days never closes: windows repeat weekly.
const DAYS_MAX: i64 = 9;

/// One window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Days on which it begins.
    pub days: Weekdays,
    /// On the clock of its zone; belongs to the window.
    pub from: Time,
    /// On the clock of its zone; does not belong to the window.
    pub until: Time,
}

/// Some windows in one zone. None at all: always open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    /// Whose clock they go by.
    pub zone: Zone,
    /// They may overlap.
    pub windows: Vec<Window>,
}

impl Default for Windows {
    fn default() -> Windows {
        Windows::always()
    }
}

impl Windows {
    /// Without a limit.
    pub fn always() -> Windows {
        Windows { zone: Zone::utc(), windows: Vec::new() }
    }

    /// Whether one is open.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.windows.is_empty() || self.open_until(now).is_some()
    }

    /// When the last of those that are open closes, those counted that follow without a pause;
    /// nothing: closed now, or never closes.
    pub fn closes_at(&self, now: Timestamp) -> Option<Timestamp> {
        let mut end = self.open_until(now)?;
        while let Some(later) = self.open_until(end) {
            end = later;
            if end.as_second() - now.as_second() > DAYS_MAX * 86_400 {
                return None;
            }
        }
        Some(end)
    }

    /// When one opens that is closed now; nothing: open now, or never opens.
    pub fn opens_at(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_open(now) {
            return None;
        }
        let begins = self.around(now, 0, DAYS_MAX).map(|(from, _)| from);
        begins.filter(|from| *from > now).min()
    }

    /// The latest end of those that are open at an instant.
    fn open_until(&self, at: Timestamp) -> Option<Timestamp> {
        let open = self.around(at, 2, 2).filter(|(from, until)| *from <= at && at < *until);
        open.map(|(_, until)| until).max()
    }

    /// Windows that begin some days around an instant.
    fn around(
        &self,
        at: Timestamp,
        before: i64,
        after: i64,
    ) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let today = self.zone.clock(at).date();
        let dates = (-before..=after).filter_map(move |days| plus_days(today, days));
        dates.flat_map(move |date| {
            let begin = self.windows.iter().filter(move |one| one.days.contains(date.weekday()));
            begin.filter_map(move |window| {
                let last = if window.until > window.from { date } else { plus_days(date, 1)? };
                let from = self.zone.instant(date.to_datetime(window.from))?;
                let until = self.zone.instant(last.to_datetime(window.until))?;
                (from < until).then_some((from, until))
            })
        })
    }
}

pub(super) fn plus_days(date: Date, days: i64) -> Option<Date> {
    date.checked_add(Span::new().try_days(days).ok()?).ok()
}
