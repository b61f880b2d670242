//! Schemas of types that `gantry-common` owns, which does not know OpenAPI.
//!
//! Never made, only described. A test compares their fields with those of the real types.

use utoipa::ToSchema;

/// Which points of a VM to keep. A point goes only if no rule keeps it.
#[derive(ToSchema)]
#[schema(as = Retention)]
#[allow(dead_code)]
pub(super) struct RetentionSchema {
    /// Points younger than this many days stay.
    pub days: u32,
    /// At least this many of the newest points stay, whatever their age; 0 counts as 1.
    pub points_min: u32,
    /// Of the first points of each week, this many newest stay.
    pub weekly: u32,
    /// As `weekly`, by month.
    pub monthly: u32,
    /// As `weekly`, by year.
    pub yearly: u32,
}

/// Whose certificate a server may show.
#[derive(ToSchema)]
#[schema(as = ServerTrust)]
#[allow(dead_code)]
pub(super) enum ServerTrustSchema {
    /// The certificate with this SHA-256 digest (hexadecimal, colons allowed).
    #[schema(rename = "thumbprint")]
    Thumbprint(String),
    /// One signed by these authorities (PEM text).
    #[schema(rename = "ca_pem")]
    CaPem(String),
}

/// A road to the blocks of a snapshot's disk.
#[derive(ToSchema)]
#[schema(as = TransportMode, rename_all = "lowercase")]
#[allow(dead_code)]
pub(super) enum TransportModeSchema {
    Direct,
    Hotadd,
    Nbd,
    Https,
    Nfc,
}

/// What a job does about a full read that was not to be expected.
#[derive(ToSchema)]
#[schema(as = CbtPolicy, rename_all = "lowercase")]
#[allow(dead_code)]
pub(super) enum CbtPolicySchema {
    Continue,
    Warn,
    Fail,
}
