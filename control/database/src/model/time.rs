//! Times of day, weekdays, and the windows of a week.
//!
//! In: `22:30`. Out: minutes. Whose time zone it is, the owner says (a job's, a rule's). Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::check::{self, Invalid, invalid};

const DAY_MINUTES: u16 = 24 * 60;

/// A day of the week.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Weekday {
    /// Monday to Sunday.
    pub const ALL: [Weekday; 7] = [
        Weekday::Monday,
        Weekday::Tuesday,
        Weekday::Wednesday,
        Weekday::Thursday,
        Weekday::Friday,
        Weekday::Saturday,
        Weekday::Sunday,
    ];

    /// The day before.
    pub fn before(self) -> Weekday {
        Weekday::ALL[(self as usize + 6) % 7]
    }
}

/// A minute of a day, `00:00` to `24:00` (which only the end of a range may be).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// `hour`:`minute`, if there is such a time.
    pub fn new(hour: u8, minute: u8) -> Option<TimeOfDay> {
        let minutes = u16::from(hour) * 60 + u16::from(minute);
        (minute < 60 && minutes <= DAY_MINUTES).then_some(TimeOfDay(minutes))
    }

    /// Minutes since midnight, at most 1440.
    pub fn minutes(self) -> u16 {
        self.0
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl fmt::Debug for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for TimeOfDay {
    type Err = String;
    fn from_str(text: &str) -> Result<TimeOfDay, String> {
        let two = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u8>().ok().filter(|_| digits)
        };
        let parts =
            text.split_once(':').and_then(|(hour, minute)| Some((two(hour)?, two(minute)?)));
        parts.and_then(|(hour, minute)| TimeOfDay::new(hour, minute)).ok_or_else(|| {
            let shown: String = text.chars().take(20).collect();
            format!("'{shown}' is no time of day; write it as 22:30")
        })
    }
}

impl Serialize for TimeOfDay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeOfDay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TimeOfDay, D::Error> {
        super::text::deserialize(deserializer)
    }
}

/// The same span on some days of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeRange {
    /// The days on which it begins; none: every day.
    #[serde(default)]
    pub days: Vec<Weekday>,
    /// Its first minute.
    #[schema(value_type = String, example = "22:00")]
    pub from: TimeOfDay,
    /// The minute after its last; at or before `from`: on the next day.
    #[schema(value_type = String, example = "06:00")]
    pub to: TimeOfDay,
}

impl TimeRange {
    fn begins_on(&self, day: Weekday) -> bool {
        self.days.is_empty() || self.days.contains(&day)
    }

    fn covers(&self, day: Weekday, minute: u16) -> bool {
        let (from, to) = (self.from.0, self.to.0);
        if from < to {
            return self.begins_on(day) && (from..to).contains(&minute);
        }
        (self.begins_on(day) && minute >= from) || (self.begins_on(day.before()) && minute < to)
    }
}

/// When something is allowed (or holds) in a week. Nothing listed: always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct WeekWindows(pub Vec<TimeRange>);

impl WeekWindows {
    /// Whether it is open on `day` at `minute` of the day.
    pub fn is_open(&self, day: Weekday, minute: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|range| range.covers(day, minute))
    }

    /// Whether it is always open.
    pub fn is_always(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn validate(&self, field: &str) -> Result<(), Invalid> {
        check::range(&format!("{field} (number of ranges)"), self.0.len(), 0, 168)?;
        for (at, range) in self.0.iter().enumerate() {
            check::distinct(&format!("{field}[{at}].days"), &range.days)?;
            if range.from.0 == DAY_MINUTES {
                return Err(invalid(format!("{field}[{at}].from"), "is 24:00; give 00:00"));
            }
        }
        Ok(())
    }
}

/// A time zone's name, by form: who computes times looks it up.
pub(super) fn zone(field: &str, name: &str) -> Result<(), Invalid> {
    check::filled(field, name, 64)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "/_+-".contains(c);
    match name.chars().all(fits) && !name.starts_with('/') {
        true => Ok(()),
        false => {
            Err(invalid(field, format!("'{name}' is no time zone; give one as Europe/Berlin")))
        }
    }
}
