//! Rules of a site, and which of them governs a flow.
//!
//! A rule is about traffic between two groups of networks, in both directions. Of the rules that are
//! enabled, open now and match, **one** governs a flow: that with the lowest rate (as in the products
//! that administrators know); of equal ones the first in the list. A rule without a rate frees nothing
//! from a lower one; it only gives a weight. The site's own rate stands above all rules.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::NetworkRange;
use crate::schedule::Windows;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRule {
    /// For reports.
    pub name: String,
    /// Networks at one end; none: any.
    pub source: Vec<NetworkRange>,
    /// Networks at the other end; none: any.
    pub target: Vec<NetworkRange>,
    /// When it holds; without windows: always.
    pub windows: Windows,
    /// Wire bytes a second for all its flows together; nothing: no limit of its own.
    pub bytes_per_second_max: Option<u64>,
    /// Its part where the site's rate is shared between rules; 0 counts as 1.
    pub weight: u32,
    /// It holds for restores too.
    pub restores: bool,
    /// It holds at all.
    pub enabled: bool,
}

/// A site's rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRules {
    /// For all traffic of all movers together; restores count only under rules that name them.
    pub site_bytes_per_second_max: Option<u64>,
    /// In the administrator's order.
    pub rules: Vec<TrafficRule>,
}

impl TrafficRule {
    /// Whether it holds for traffic between these addresses now.
    pub fn matches(&self, now: Timestamp, source: IpAddr, target: IpAddr, restore: bool) -> bool {
        let inside = |ranges: &[NetworkRange], address| {
            ranges.is_empty() || ranges.iter().any(|range| range.contains(address))
        };
        let pair = |one, other| inside(&self.source, one) && inside(&self.target, other);
        self.enabled
            && (self.restores || !restore)
            && (pair(source, target) || pair(target, source))
            && self.windows.is_open(now)
    }
}

impl TrafficRules {
    /// The rule that governs, as its place in the list.
    pub fn governing(
        &self,
        now: Timestamp,
        source: IpAddr,
        target: IpAddr,
        restore: bool,
    ) -> Option<usize> {
        let all = self.rules.iter().enumerate();
        let matching = all.filter(|(_, rule)| rule.matches(now, source, target, restore));
        let rate = |rule: &TrafficRule| rule.bytes_per_second_max.unwrap_or(u64::MAX);
        matching.min_by_key(|(index, rule)| (rate(rule), *index)).map(|(index, _)| index)
    }
}
