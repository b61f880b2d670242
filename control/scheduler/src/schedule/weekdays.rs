//! A set of days of the week.

use std::fmt;

use jiff::civil::Weekday;
use serde::{Deserialize, Serialize};

const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Days of the week; written as a list of `mon` to `sun`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Weekdays(u8);

impl Weekdays {
    /// Every day.
    pub const ALL: Weekdays = Weekdays(0x7f);
    /// Monday to Friday.
    pub const WORKING: Weekdays = Weekdays(0x1f);

    /// Of these days.
    pub fn of(days: &[Weekday]) -> Weekdays {
        Weekdays(days.iter().fold(0, |set, day| set | 1 << day.to_monday_zero_offset()))
    }

    /// Has this day.
    pub fn contains(self, day: Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }

    /// Has no day.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl TryFrom<Vec<String>> for Weekdays {
    type Error = String;
    fn try_from(names: Vec<String>) -> Result<Weekdays, String> {
        let mut set = 0;
        for name in names {
            let day = NAMES.iter().position(|known| known.eq_ignore_ascii_case(&name));
            let day = day.ok_or_else(|| {
                let name: String = name.chars().take(20).collect();
                format!("no day '{name}': {}", NAMES.join(", "))
            })?;
            set |= 1 << day;
        }
        Ok(Weekdays(set))
    }
}

impl From<Weekdays> for Vec<String> {
    fn from(days: Weekdays) -> Vec<String> {
        let named = NAMES.iter().enumerate().filter(|(day, _)| days.0 & (1 << day) != 0);
        named.map(|(_, name)| (*name).to_owned()).collect()
    }
}

impl fmt::Display for Weekdays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Vec::from(*self).join(", "))
    }
}
