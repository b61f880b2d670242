//! A time zone, and one rule for hours that a clock change skips or repeats.
//!
//! In: wall-clock times. Out: instants. Invariant: the later of two wall-clock times is never the
//! earlier instant. A time in a skipped hour is the instant of the change, so that all that was due in
//! it comes once, at once; a time in a repeated hour is its first passing, so that it comes once.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

/// A zone by its name in the IANA database.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone {
    name: String,
    rules: TimeZone,
}

/// No zone has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no time zone '{0}': names are those of the IANA database, such as Europe/Berlin or UTC")]
pub struct UnknownZone(String);

impl Zone {
    /// From the built-in database.
    ///
    /// # Errors
    /// There is no such zone.
    pub fn named(name: &str) -> Result<Zone, UnknownZone> {
        if name.eq_ignore_ascii_case("UTC") {
            return Ok(Zone::utc());
        }
        let unknown = || UnknownZone(name.chars().take(80).collect());
        let rules = TimeZoneDatabase::bundled().get(name).map_err(|_| unknown())?;
        let name = rules.iana_name().unwrap_or(name).to_owned();
        Ok(Zone { name, rules })
    }

    /// With rules from elsewhere.
    pub fn given(name: &str, rules: TimeZone) -> Zone {
        Zone { name: name.to_owned(), rules }
    }

    /// Universal time.
    pub fn utc() -> Zone {
        Zone { name: "UTC".to_owned(), rules: TimeZone::UTC }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What clocks show at an instant.
    pub fn clock(&self, instant: Timestamp) -> DateTime {
        self.rules.to_datetime(instant)
    }

    /// When clocks show this, by the rule above; nothing: beyond the years that can be reckoned with.
    pub fn instant(&self, clock: DateTime) -> Option<Timestamp> {
        let ambiguous = self.rules.to_ambiguous_timestamp(clock);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => ambiguous.unambiguous().ok(),
            AmbiguousOffset::Fold { .. } => ambiguous.earlier().ok(),
            AmbiguousOffset::Gap { .. } => {
                // Read with the offset of after the change, it lies before the change.
                let before = ambiguous.earlier().ok()?;
                let change = self.rules.following(before).next()?;
                Some(change.timestamp())
            }
        }
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.name)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl TryFrom<String> for Zone {
    type Error = UnknownZone;
    fn try_from(name: String) -> Result<Zone, UnknownZone> {
        Zone::named(&name)
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> String {
        zone.name
    }
}
