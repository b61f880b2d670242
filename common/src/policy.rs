//! Choices of a job that several parts of Gantry must name alike.
//!
//! In: their names in a configuration or in JSON. Out: the choice. What follows from one stands where
//! it is decided.

use serde::{Deserialize, Serialize};

/// What a job does about a full read that was not to be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CbtPolicy {
    /// Reads everything; the log has the reason.
    Continue,
    /// Reads everything, and the session ends with a warning.
    #[default]
    Warn,
    /// Does not begin.
    Fail,
}
