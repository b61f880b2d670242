//! Settings of the whole service: a name and a JSON value.
//!
//! Must not hold secrets: those have [`super::SecretSlot::Named`].

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::check::{self, Invalid, invalid};

/// Bytes of a setting's JSON.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// A setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Value,
}

impl Setting {
    /// Days that finished sessions are kept.
    pub const SESSION_DAYS: &'static str = "session_days";

    /// Checks name and value.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        let bytes = self.value.to_string().len();
        check::range("value (bytes of its JSON)", bytes, 0, VALUE_BYTES_MAX)?;
        if self.name == Setting::SESSION_DAYS
            && self.value.as_u64().is_none_or(|days| days == 0 || days > 36_500)
        {
            return Err(invalid("value", "is no number of days; give 1 to 36500"));
        }
        Ok(())
    }
}
