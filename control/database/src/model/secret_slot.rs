//! Where a secret is kept: the reference that stands for it everywhere else.
//!
//! In: whose secret it is. Out: its place in the table of secrets. Invariant: a place says its owner
//! and its use, and both are authenticated with the value, so that no row can pass for another.

use gantry_common::ids::PeerId;
use serde::{Deserialize, Serialize};

use super::Id;
use super::check::{self, Invalid, invalid};

/// A secret's place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSlot {
    /// Password of a vCenter's user.
    VCenterPassword(Id),
    /// Password of a guest's credential.
    CredentialPassword(Id),
    /// Key of a repository mover's tickets, in hexadecimal.
    TicketKey(PeerId),
    /// Something that gantryd itself needs, such as `authority-key`. Letters, digits and `-`.
    Named(String),
}

impl SecretSlot {
    /// The owner's kind, the owner and the use: the row's key.
    pub fn place(&self) -> (&'static str, String, &'static str) {
        match self {
            SecretSlot::VCenterPassword(id) => ("vcenter", id.to_string(), "password"),
            SecretSlot::CredentialPassword(id) => ("credential", id.to_string(), "password"),
            SecretSlot::TicketKey(pin) => ("mover", pin.to_string(), "ticket-key"),
            SecretSlot::Named(name) => ("gantryd", name.clone(), "named"),
        }
    }

    /// Checks a name.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        let SecretSlot::Named(name) = self else { return Ok(()) };
        check::name("name", name)?;
        match name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            true => Ok(()),
            false => Err(invalid("name", "is no name of a secret; give letters, digits and -")),
        }
    }
}
