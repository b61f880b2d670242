//! Traffic rules: how much may flow between which networks, and when.
//!
//! Plain data; who shares a rate out stands in the throttle.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{self, Invalid};
use super::{Id, NetworkRange, WeekWindows, Weekday, time};

/// A limit for what flows between some networks at some times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrafficRule {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// What people call it; unique.
    pub name: String,
    /// Whether it holds.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Addresses of source movers; none: all.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["10.1.0.0/16"]))]
    pub sources: Vec<NetworkRange>,
    /// Addresses of target movers; none: all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub targets: Vec<NetworkRange>,
    /// What all sessions under it may send together.
    pub rate_bytes_per_second: u64,
    /// When it holds; none: always.
    #[serde(default)]
    pub windows: WeekWindows,
    /// Time zone (IANA) of its windows.
    #[serde(default = "zone")]
    pub time_zone: String,
    /// Its share where several rules divide a wider one.
    #[serde(default = "weight")]
    pub weight: u32,
}

impl TrafficRule {
    /// Whether it holds for what flows from `source` to `target` on `day` at `minute` of the day, in
    /// its time zone.
    pub fn applies(&self, source: IpAddr, target: IpAddr, day: Weekday, minute: u16) -> bool {
        let holds = |ranges: &[NetworkRange], address| {
            ranges.is_empty() || ranges.iter().any(|range| range.contains(address))
        };
        self.enabled
            && holds(&self.sources, source)
            && holds(&self.targets, target)
            && self.windows.is_open(day, minute)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        check::distinct("sources", &self.sources)?;
        check::distinct("targets", &self.targets)?;
        check::range("rate_bytes_per_second", self.rate_bytes_per_second, 1, i64::MAX as u64)?;
        self.windows.validate("windows")?;
        time::zone("time_zone", &self.time_zone)?;
        check::range("weight", self.weight, 1, 1000)
    }
}

fn yes() -> bool {
    true
}

fn zone() -> String {
    "UTC".to_owned()
}

fn weight() -> u32 {
    1
}
