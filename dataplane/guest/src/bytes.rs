//! Numbers in bytes that may be too short.
//!
//! In: bytes of a disk. Out: a number, or an error that names the place; never a panic.

use crate::volume::Refused;

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Refused> {
    let end = offset.checked_add(N);
    let found = end.and_then(|end| bytes.get(offset..end)).and_then(|part| part.try_into().ok());
    found.ok_or_else(|| Refused::new(format!("a structure ends before its byte {offset}")))
}

/// Little-endian.
pub(crate) fn le16(bytes: &[u8], offset: usize) -> Result<u16, Refused> {
    at(bytes, offset).map(u16::from_le_bytes)
}

/// Little-endian.
pub(crate) fn le32(bytes: &[u8], offset: usize) -> Result<u32, Refused> {
    at(bytes, offset).map(u32::from_le_bytes)
}

/// Little-endian.
pub(crate) fn le64(bytes: &[u8], offset: usize) -> Result<u64, Refused> {
    at(bytes, offset).map(u64::from_le_bytes)
}

/// Big-endian.
pub(crate) fn be16(bytes: &[u8], offset: usize) -> Result<u16, Refused> {
    at(bytes, offset).map(u16::from_be_bytes)
}

/// Big-endian.
pub(crate) fn be32(bytes: &[u8], offset: usize) -> Result<u32, Refused> {
    at(bytes, offset).map(u32::from_be_bytes)
}

/// Big-endian.
pub(crate) fn be64(bytes: &[u8], offset: usize) -> Result<u64, Refused> {
    at(bytes, offset).map(u64::from_be_bytes)
}

/// Sixteen bytes as a UUID is written, in the order in which they stand.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (number, byte) in bytes.iter().take(16).enumerate() {
        if [4, 6, 8, 10].contains(&number) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Text up to its first zero byte, with what no person should see replaced.
pub(crate) fn label(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// CRC-32C as file systems chain it: from any start, without inversion.
pub(crate) fn crc32c_from(start: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!start, bytes)
}
