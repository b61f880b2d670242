//! Units that people type and read: block sizes, compression levels, byte counts, rates.
//!
//! In: text and numbers. Out: checked values. One parser a unit, used by every command.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is no such unit, with the accepted forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{found}' is no {what}; write it as {forms}")]
pub struct UnitParseError {
    what: &'static str,
    forms: &'static str,
    found: String,
}

fn error(what: &'static str, forms: &'static str, found: &str) -> UnitParseError {
    UnitParseError { what, forms, found: found.chars().take(80).collect() }
}

/// Parses `123`, `64K`, `1.5 GiB`, `200MB`. K, M, G, T (and KiB...) are powers of 1024; KB, MB, GB,
/// TB are powers of 1000, as disk and network vendors count.
pub fn parse_bytes(text: &str) -> Result<u64, UnitParseError> {
    let fail = || {
        error("size", "a number with an optional K, M, G, T (1024) or KB, MB, GB, TB (1000)", text)
    };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(fail()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(fail);
    }
    let value: f64 = number.parse().map_err(|_| fail())?;
    let bytes = value * factor as f64;
    if !bytes.is_finite() || bytes < 0.0 || bytes >= u64::MAX as f64 {
        return Err(fail());
    }
    Ok(bytes as u64)
}

/// Writes a byte count the way people read it: `7.58 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// A byte rate of a throttle, in bytes a second; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes a second on the wire.
    pub bytes_per_second: u64,
}

impl FromStr for Rate {
    type Err = UnitParseError;
    /// Parses `200MB/s`, `10MiB/s`, `800Mbit/s`; a bare size means bytes a second.
    fn from_str(text: &str) -> Result<Rate, UnitParseError> {
        let forms = "200MB/s, 10MiB/s or 800Mbit/s";
        let lower = text.trim().to_ascii_lowercase();
        let body = lower.strip_suffix("/s").unwrap_or(&lower);
        let bytes_per_second = match body.strip_suffix("bit") {
            Some(bits) => parse_bytes(&format!("{bits}b")).map(|bits| bits / 8),
            None => parse_bytes(body),
        }
        .map_err(|_| error("rate", forms, text))?;
        if bytes_per_second == 0 {
            return Err(error("rate", forms, text));
        }
        Ok(Rate { bytes_per_second })
    }
}

/// The fixed size of a job's blocks.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum BlockSize {
    /// 256 KiB: finest increments, largest maps; for points that must start instantly.
    K256,
    /// 512 KiB.
    K512,
    /// 1 MiB, the default.
    #[default]
    M1,
    /// 4 MiB: smallest maps, for very large disks.
    M4,
}

impl BlockSize {
    /// Every size there is, smallest first.
    pub const ALL: [BlockSize; 4] =
        [BlockSize::K256, BlockSize::K512, BlockSize::M1, BlockSize::M4];

    /// Bytes in a block.
    pub const fn bytes(self) -> u32 {
        match self {
            BlockSize::K256 => 256 << 10,
            BlockSize::K512 => 512 << 10,
            BlockSize::M1 => 1 << 20,
            BlockSize::M4 => 4 << 20,
        }
    }

    /// Blocks that a disk of `size_bytes` has; the last one may be short.
    pub const fn block_count(self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.bytes() as u64)
    }

    /// Bytes of block `block` of a disk of `size_bytes`: a whole block, or the disk's short tail;
    /// 0 beyond the end.
    pub fn block_len(self, block: u64, size_bytes: u64) -> u32 {
        let start = block.saturating_mul(self.bytes() as u64);
        size_bytes.saturating_sub(start).min(self.bytes() as u64) as u32
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlockSize::K256 => "256K",
            BlockSize::K512 => "512K",
            BlockSize::M1 => "1M",
            BlockSize::M4 => "4M",
        })
    }
}

impl FromStr for BlockSize {
    type Err = UnitParseError;
    fn from_str(text: &str) -> Result<BlockSize, UnitParseError> {
        let bytes = parse_bytes(text).unwrap_or(0);
        BlockSize::ALL
            .into_iter()
            .find(|size| u64::from(size.bytes()) == bytes)
            .ok_or_else(|| error("block size", "256K, 512K, 1M or 4M", text))
    }
}

/// How hard blocks are compressed. The names are the field's; zstd levels follow DATAPLANE
/// measurements. A block that does not shrink is stored as it is at every level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Compression {
    /// Store blocks as they are.
    None,
    /// zstd -5: about 1.4 times the speed of optimal, a quarter more space.
    Fast,
    /// zstd 1, the default.
    #[default]
    Optimal,
    /// zstd 3: half the speed of optimal, 8 % less space.
    High,
    /// zstd 9: for slow lines and idle CPUs.
    Extreme,
}

impl Compression {
    /// Every level, cheapest first.
    pub const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Fast,
        Compression::Optimal,
        Compression::High,
        Compression::Extreme,
    ];

    /// zstd's level, or nothing for [`Compression::None`].
    pub const fn zstd_level(self) -> Option<i32> {
        match self {
            Compression::None => None,
            Compression::Fast => Some(-5),
            Compression::Optimal => Some(1),
            Compression::High => Some(3),
            Compression::Extreme => Some(9),
        }
    }

    /// The name a person types.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Fast => "fast",
            Compression::Optimal => "optimal",
            Compression::High => "high",
            Compression::Extreme => "extreme",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = UnitParseError;
    fn from_str(text: &str) -> Result<Compression, UnitParseError> {
        Compression::ALL
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| error("compression", "none, fast, optimal, high or extreme", text))
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockSize, Compression, Rate, parse_bytes};

    #[test]
    fn sizes_rates_and_levels_parse() {
        for (text, bytes) in [
            ("0", 0),
            ("64K", 65_536),
            ("1.5GiB", 3 << 29),
            ("200MB", 200_000_000),
            ("1 T", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "K", "-1", "1Q", "999999999999T", "1e400", "."] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for (text, rate) in [("200MB/s", 200_000_000), ("8Mbit/s", 1_000_000), ("1000", 1000)] {
            assert_eq!(text.parse::<Rate>().map(|r| r.bytes_per_second), Ok(rate), "{text}");
        }
        assert!("0".parse::<Rate>().is_err());
        for size in BlockSize::ALL {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for level in Compression::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
    }

    #[test]
    fn the_last_block_may_be_short() {
        let size = BlockSize::M1;
        assert_eq!(size.block_count((5 << 20) + 1), 6);
        assert_eq!(size.block_len(5, (5 << 20) + 1), 1);
        assert_eq!(size.block_len(4, (5 << 20) + 1), 1 << 20);
        assert_eq!(size.block_len(6, (5 << 20) + 1), 0);
    }
}
