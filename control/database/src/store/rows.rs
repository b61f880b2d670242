//! Values as columns hold them: words, documents, times, hexadecimal; and what an engine's refusal means.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::error::{DatabaseError, unreadable};

/// Bytes of one document.
const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// Lower-case digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Back; nothing if they are none.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then_some(())?;
    bytes.collect()
}

/// The word that JSON has for a value without fields.
pub(super) fn word(value: &impl Serialize) -> Result<String, DatabaseError> {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => Ok(word),
        _ => Err(unreadable("word", "not written as one")),
    }
}

/// And back.
pub(super) fn unword<T: DeserializeOwned>(word: String) -> Result<T, DatabaseError> {
    serde_json::from_value(Value::String(word)).map_err(|error| unreadable("word", error))
}

/// A document's text, bounded.
pub(super) fn document(value: &impl Serialize) -> Result<String, DatabaseError> {
    let text = serde_json::to_string(value).map_err(|error| unreadable("document", error))?;
    match text.len() {
        ..=DOCUMENT_BYTES_MAX => Ok(text),
        found => {
            let what = "a record's document";
            Err(DatabaseError::TooLarge { what, found, max: DOCUMENT_BYTES_MAX })
        }
    }
}

/// And back.
pub(super) fn undocument<T: DeserializeOwned>(text: &str) -> Result<T, DatabaseError> {
    serde_json::from_str(text).map_err(|error| unreadable("document", error))
}

/// An id, pin or hash as a column holds it.
pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<T, DatabaseError> {
    text.parse().map_err(|error| unreadable("id", error))
}

/// Times and counters fit the engines' integers: records were checked, clocks are not that far.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// And back.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Says what is taken where the engine found something twice.
pub(super) fn taken(error: sqlx::Error, what: &'static str, key: &str) -> DatabaseError {
    match error.as_database_error().is_some_and(|error| error.is_unique_violation()) {
        true => DatabaseError::Taken { what, key: key.to_owned() },
        false => error.into(),
    }
}

/// Says what is missing where the engine found a reference to nothing.
pub(super) fn dangling(error: sqlx::Error, what: &'static str, key: &str) -> DatabaseError {
    match error.as_database_error().is_some_and(|error| error.is_foreign_key_violation()) {
        true => DatabaseError::NotFound { what, key: key.to_owned() },
        false => taken(error, "record", key),
    }
}
