//! Bytes as hexadecimal text.
//!
//! In: bytes, or text from a person or a control plane. Out: the other. Pure.

use std::fmt::Write;

/// Bytes as lower-case hexadecimal digits.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of hexadecimal text; nothing if it is none, or longer than `bytes_max` bytes.
pub fn decode(text: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let is_hex = text.len().is_multiple_of(2)
        && text.len() / 2 <= bytes_max
        && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if is_hex { text.as_bytes().chunks_exact(2).map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    #[test]
    fn bytes_come_back_and_rubbish_does_not() {
        assert_eq!(encode(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(decode("00aBff", 3), Some(vec![0, 0xab, 0xff]));
        for (bad, max) in [("0", 9), ("zz", 9), ("+1", 9), ("é", 9), ("0000", 1)] {
            assert_eq!(decode(bad, max), None, "{bad}");
        }
    }
}
