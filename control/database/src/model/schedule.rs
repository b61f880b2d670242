//! When a job begins by itself, and when it reads everything.
//!
//! All times are in the job's time zone. Here they are only described; who computes the next one
//! stands in the job manager.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{self, Invalid, invalid};
use super::{Id, TimeOfDay, Weekday};

/// Minutes between two sessions, at the most: four weeks.
const PERIOD_MINUTES_MAX: u32 = 28 * 24 * 60;

/// When a job begins by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Never: a person or the API starts it.
    #[default]
    Manual,
    /// At a time of day.
    Daily {
        /// The time.
        #[schema(value_type = String, example = "22:00")]
        at: TimeOfDay,
        /// On these days; none: every day.
        #[serde(default)]
        days: Vec<Weekday>,
    },
    /// Every so many minutes, counted from midnight.
    Periodic {
        /// Minutes.
        minutes: u32,
    },
    /// As a line of crontab says: minute, hour, day of month, month, day of week.
    Cron {
        /// The five fields.
        #[schema(example = "30 22 * * mon-fri")]
        text: String,
    },
    /// When a session of another job has ended without failure.
    After {
        /// The other job.
        #[schema(value_type = String)]
        job: Id,
    },
}

impl Schedule {
    pub(super) fn validate(&self, own: Id) -> Result<(), Invalid> {
        match self {
            Schedule::Manual => Ok(()),
            Schedule::Daily { at, .. } if at.minutes() == 1440 => {
                Err(invalid("at", "is 24:00; give 00:00"))
            }
            Schedule::Daily { days, .. } => check::distinct("days", days),
            Schedule::Periodic { minutes } => {
                check::range("minutes", *minutes, 1, PERIOD_MINUTES_MAX)
            }
            Schedule::Cron { text } => cron(text),
            Schedule::After { job } if *job == own => {
                Err(invalid("job", "is the job itself; name another one"))
            }
            Schedule::After { .. } => Ok(()),
        }
    }
}

fn cron(text: &str) -> Result<(), Invalid> {
    check::line("text", text, 200)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "*,-/?#".contains(c);
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    match fields.len() == 5 && fields.iter().all(|field| field.chars().all(fits)) {
        true => Ok(()),
        false => Err(invalid(
            "text",
            "is no crontab time; give minute, hour, day, month and weekday, as 30 22 * * mon-fri",
        )),
    }
}

/// When a job reads everything, whatever has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ActiveFull {
    /// Only when it is asked for.
    #[default]
    Never,
    /// In the first session on these days of each week.
    Weekly {
        /// The days.
        days: Vec<Weekday>,
    },
    /// In the first session on or after this day of each month.
    Monthly {
        /// 1 to 28.
        day: u8,
    },
}

impl ActiveFull {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        match self {
            ActiveFull::Never => Ok(()),
            ActiveFull::Weekly { days } if days.is_empty() => {
                Err(invalid("days", "names no day; name one, or choose kind never"))
            }
            ActiveFull::Weekly { days } => check::distinct("days", days),
            ActiveFull::Monthly { day } => check::range("day", *day, 1, 28),
        }
    }
}
