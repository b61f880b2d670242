//! Text that must not be seen: passwords, session cookies, tickets.
//!
//! In: the text. Out: the text, to who asks for it by name. Invariant: neither `Debug` nor an error
//! shows it. Serialising does, since a mover must be told it: such JSON goes over authenticated
//! links and into files of mode 0600 only.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A secret text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself: for the wire, never for a message.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
