//! Cron patterns, by the crate `croner`.
//!
//! `croner` because it follows the written-down pattern language (OCPS: five fields, names, `L`, `#`,
//! `W`), is kept up, and reckons on jiff's plain wall-clock times, so that the rule for clock changes
//! stays ours ([`Zone`](super::Zone)): `cron` and `cronexpr` bring rules of their own, `cron` chrono too.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

/// Longest pattern that is looked at.
const PATTERN_BYTES_MAX: usize = 256;

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{pattern}' is no schedule: {reason}. Five fields: minute hour day month weekday")]
pub struct CronError {
    pattern: String,
    reason: String,
}

/// A pattern of five fields: minute, hour, day of the month, month, weekday.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronSchedule {
    text: String,
    cron: Box<Cron>,
}

impl CronSchedule {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It is none, or none that ever comes.
    pub fn parse(text: &str) -> Result<CronSchedule, CronError> {
        let error = |reason: String| CronError { pattern: text.chars().take(80).collect(), reason };
        if text.len() > PATTERN_BYTES_MAX {
            return Err(error(format!("longer than {PATTERN_BYTES_MAX} bytes")));
        }
        let parser =
            CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|found| error(found.to_string()))?;
        let schedule = CronSchedule { text: text.to_owned(), cron: Box::new(cron) };
        if schedule.after(jiff::civil::date(2000, 1, 1).at(0, 0, 0, 0)).is_none() {
            return Err(error("it never comes".to_owned()));
        }
        Ok(schedule)
    }

    /// The next time on the clock, later than this one.
    pub(super) fn after(&self, clock: DateTime) -> Option<DateTime> {
        self.cron.find_next_occurrence(&clock, false).ok()
    }
}

impl PartialEq for CronSchedule {
    fn eq(&self, other: &CronSchedule) -> bool {
        self.text == other.text
    }
}

impl Eq for CronSchedule {}

impl fmt::Debug for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CronSchedule({})", self.text)
    }
}

impl TryFrom<String> for CronSchedule {
    type Error = CronError;
    fn try_from(text: String) -> Result<CronSchedule, CronError> {
        CronSchedule::parse(&text)
    }
}

impl From<CronSchedule> for String {
    fn from(schedule: CronSchedule) -> String {
        schedule.text
    }
}
