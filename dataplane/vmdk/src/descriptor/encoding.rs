//! The descriptor's bytes as text: it names its own encoding, in which file names are written.
//!
//! In: bytes. Out: text, or why not. Must not: change a name silently.

use std::borrow::Cow;

use encoding_rs::{Encoding, WINDOWS_1252};

/// Decodes by the `encoding=` line. Without one: UTF-8, or windows-1252 where it is not UTF-8, which
/// is what products without that line wrote.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    if bytes.is_ascii() {
        return Ok(String::from_utf8_lossy(bytes));
    }
    let Some(label) = label(bytes) else {
        return Ok(match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => WINDOWS_1252.decode_without_bom_handling(bytes).0,
        });
    };
    let encoding = Encoding::for_label(label)
        .filter(|encoding| encoding.is_ascii_compatible())
        .ok_or_else(|| format!("its encoding {:?} is not known", String::from_utf8_lossy(label)))?;
    encoding
        .decode_without_bom_handling_and_without_replacement(bytes)
        .ok_or_else(|| format!("it is not written in {}, which it names", encoding.name()))
}

/// The value of the first `encoding=` line.
fn label(bytes: &[u8]) -> Option<&[u8]> {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let value = lines.find_map(|line| {
        let line = line.trim_ascii();
        let (key, value) = line.split_at(line.iter().position(|&byte| byte == b'=')?);
        key.trim_ascii().eq_ignore_ascii_case(b"encoding").then(|| value[1..].trim_ascii())
    })?;
    let value = value.strip_prefix(b"\"").unwrap_or(value);
    let value = value.strip_suffix(b"\"").unwrap_or(value);
    (value.len() <= 40).then_some(value)
}
