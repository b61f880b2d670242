//! Who is let in: API tokens, enrolments, movers; and as whom Gantry logs in to guests.
//!
//! Plain data. Of tokens only the SHA-256 is kept; passwords and keys stand in their
//! [`SecretSlot`]s.

use gantry_common::ids::PeerId;
use gantry_common::limits;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{self, Invalid, invalid};
use super::{Id, SecretSlot, text};

/// What a token's bearer may do; each may do what the lesser may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Starts, stops and restores.
    Operator,
    /// Changes the configuration.
    Admin,
}

/// What a mover is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MoverRole {
    /// Reads disks.
    Proxy,
    /// Keeps backups.
    Repository,
}

/// An API token. The token itself is shown once, when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Whose it is; unique.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// SHA-256 of the token, in hexadecimal.
    pub hash: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends; nothing: never.
    pub expires_ms: Option<u64>,
    /// When it was last used.
    pub last_used_ms: Option<u64>,
}

/// A one-time token with which a mover gets its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRecord {
    /// SHA-256 of the token, in hexadecimal.
    pub hash: String,
    /// Name for the mover.
    pub mover: String,
    /// What it will be for.
    pub role: MoverRole,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
    /// When it was used.
    pub used_ms: Option<u64>,
}

/// A mover that has enrolled. The key of a repository's tickets stands at
/// [`MoverRecord::ticket_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoverRecord {
    /// SHA-256 of its public key: what it is known by.
    #[serde(with = "text")]
    #[schema(value_type = String)]
    pub pin: PeerId,
    /// What people call it; unique among those that are not revoked.
    pub name: String,
    /// What it is for.
    pub role: MoverRole,
    /// When it enrolled, milliseconds since 1970.
    pub enrolled_ms: u64,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
    /// When its certificate ends.
    pub certificate_expires_ms: u64,
}

/// As whom to log in to guests. The password stands at [`CredentialRecord::password`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialRecord {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// What people call it; unique.
    pub name: String,
    /// User name in the guest, with its domain if it has one.
    pub user: String,
    /// For people.
    #[serde(default)]
    pub description: String,
}

impl CredentialRecord {
    /// Where its password is kept.
    pub fn password(&self) -> SecretSlot {
        SecretSlot::CredentialPassword(self.id)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        check::filled("user", &self.user, limits::NAME_BYTES_MAX)?;
        check::line("description", &self.description, 4096)
    }
}

impl MoverRecord {
    /// Where the key of its tickets is kept.
    pub fn ticket_key(&self) -> SecretSlot {
        SecretSlot::TicketKey(self.pin)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        check::bytes("enrolled_ms", self.enrolled_ms)?;
        check::bytes("revoked_ms", self.revoked_ms.unwrap_or(0))?;
        check::bytes("certificate_expires_ms", self.certificate_expires_ms)
    }
}

impl TokenRecord {
    /// Whether it still lets in at `now_ms`.
    pub fn is_valid_at(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|end| now_ms < end)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        hash(&self.hash)?;
        check::bytes("created_ms", self.created_ms)?;
        check::bytes("expires_ms", self.expires_ms.unwrap_or(0))?;
        check::bytes("last_used_ms", self.last_used_ms.unwrap_or(0))
    }
}

impl EnrolmentRecord {
    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("mover", &self.mover)?;
        hash(&self.hash)?;
        check::bytes("created_ms", self.created_ms)?;
        check::bytes("expires_ms", self.expires_ms)?;
        check::bytes("used_ms", self.used_ms.unwrap_or(0))
    }
}

fn hash(text: &str) -> Result<(), Invalid> {
    let fits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() == 64 && text.bytes().all(fits) {
        true => Ok(()),
        false => {
            Err(invalid("hash", "is no SHA-256 digest; give 64 hexadecimal digits in lower case"))
        }
    }
}
