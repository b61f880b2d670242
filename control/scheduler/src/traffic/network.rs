//! Ranges of addresses: a network (`10.1.0.0/16`, `fd00::/8`), from-to (`10.1.0.5-10.1.0.9`), one
//! address, or `any`.
//!
//! A range holds addresses of its own family only, `any` those of both; an IPv4 address written as
//! IPv6 counts as IPv4.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Addresses from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkRange(Range);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Any,
    V4(u32, u32),
    V6(u128, u128),
}

/// Text that is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no network range: 10.1.0.0/16, fd00::/8, 10.1.0.5-10.1.0.9, one address, or any")]
pub struct NetworkError(String);

impl NetworkRange {
    /// Every address.
    pub const ANY: NetworkRange = NetworkRange(Range::Any);

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.0, address.to_canonical()) {
            (Range::Any, _) => true,
            (Range::V4(first, last), IpAddr::V4(one)) => (first..=last).contains(&one.to_bits()),
            (Range::V6(first, last), IpAddr::V6(one)) => (first..=last).contains(&one.to_bits()),
            _ => false,
        }
    }

    fn parse(text: &str) -> Option<NetworkRange> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("any") {
            return Some(NetworkRange::ANY);
        }
        let address = |text: &str| text.trim().parse::<IpAddr>().ok();
        if let Some((network, length)) = text.split_once('/') {
            // Digits alone: "+8" and the like parse as numbers too.
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length: u32 = length.parse().ok().filter(|_| digits)?;
            return of_network(address(network)?, length);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (address(first)?.to_canonical(), address(last)?.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                Some(NetworkRange(Range::V4(first.to_bits(), last.to_bits())))
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                Some(NetworkRange(Range::V6(first.to_bits(), last.to_bits())))
            }
            _ => None,
        }
    }
}

/// The bits beyond the prefix may be anything, as in a host's own address with its prefix.
fn of_network(address: IpAddr, length: u32) -> Option<NetworkRange> {
    match address {
        IpAddr::V4(address) if length <= 32 => {
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            let first = address.to_bits() & !host;
            Some(NetworkRange(Range::V4(first, first | host)))
        }
        IpAddr::V6(address) if length <= 128 => {
            let host = u128::MAX.checked_shr(length).unwrap_or(0);
            let first = address.to_bits() & !host;
            Some(NetworkRange(Range::V6(first, first | host)))
        }
        _ => None,
    }
}

impl FromStr for NetworkRange {
    type Err = NetworkError;
    fn from_str(text: &str) -> Result<NetworkRange, NetworkError> {
        NetworkRange::parse(text).ok_or_else(|| NetworkError(text.chars().take(100).collect()))
    }
}

impl fmt::Display for NetworkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Range::Any => f.write_str("any"),
            Range::V4(first, last) => {
                write!(f, "{}-{}", Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last))
            }
            Range::V6(first, last) => {
                write!(f, "{}-{}", Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last))
            }
        }
    }
}

impl TryFrom<String> for NetworkRange {
    type Error = NetworkError;
    fn try_from(text: String) -> Result<NetworkRange, NetworkError> {
        text.parse()
    }
}

impl From<NetworkRange> for String {
    fn from(range: NetworkRange) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::NetworkRange;

    #[test]
    fn ranges_hold_what_they_say() {
        for (range, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3/24", "10.1.2.0", "10.1.3.0"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("10.0.0.5-10.0.0.9", "10.0.0.9", "10.0.0.10"),
            ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"),
            ("fd00::/8", "fdff::1", "fe00::"),
            ("::/0", "ffff::", "10.0.0.1"),
            ("2001:db8::1-2001:db8::ff", "2001:db8::80", "2001:db8::100"),
        ] {
            let parsed: NetworkRange = range.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{range} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{range} {outside}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{range}");
        }
        for wrong in
            ["", "10.0.0.0/33", "10.0.0.9-10.0.0.5", "10.0.0.0/+8", "::/129", "a", "1.1.1.1-::1"]
        {
            assert!(wrong.parse::<NetworkRange>().is_err(), "{wrong}");
        }
    }
}
