//! Ranges of network addresses: `10.1.0.0/16`, `fd00::/8`, or one address.
//!
//! In: text. Out: whether an address is within. IPv4 addresses in IPv6 form count as IPv4.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkRange {
    first: IpAddr,
    prefix_bits: u8,
}

impl NetworkRange {
    /// Whether the address is within.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let away = 32 - u32::from(self.prefix_bits);
                (own.to_bits() ^ other.to_bits()).checked_shr(away).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let away = 128 - u32::from(self.prefix_bits);
                (own.to_bits() ^ other.to_bits()).checked_shr(away).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Bits that are fixed: of two ranges that hold an address, the one with more is more exact.
    pub fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }
}

impl fmt::Display for NetworkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits)
    }
}

impl FromStr for NetworkRange {
    type Err = String;
    fn from_str(text: &str) -> Result<NetworkRange, String> {
        let error = || {
            let shown: String = text.chars().take(80).collect();
            format!("'{shown}' is no network range; write it as 10.1.0.0/16, fd00::/8 or 10.1.2.3")
        };
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let first: IpAddr = address.parse().map_err(|_| error())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match bits {
            None => most,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(error)?
            }
            Some(_) => return Err(error()),
        };
        Ok(NetworkRange { first, prefix_bits })
    }
}

impl Serialize for NetworkRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetworkRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NetworkRange, D::Error> {
        super::text::deserialize(deserializer)
    }
}
