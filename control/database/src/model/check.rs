//! What is wrong with a record, and the checks that several types share.
//!
//! In: fields. Out: nothing, or [`Invalid`] with the field's name and what to do.

use gantry_common::limits;

/// A field that cannot stand as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct Invalid {
    /// The field, as in JSON: `selection.patterns`.
    pub field: String,
    /// What is wrong, and what to give instead.
    pub what: String,
}

/// A finding about `field`.
pub(crate) fn invalid(field: impl Into<String>, what: impl Into<String>) -> Invalid {
    Invalid { field: field.into(), what: what.into() }
}

/// Puts the outer field's name before that of a finding within.
pub(crate) fn within(outer: &str, found: Result<(), Invalid>) -> Result<(), Invalid> {
    found.map_err(|found| invalid(format!("{outer}.{}", found.field), found.what))
}

/// Bytes of a name that people give.
pub(crate) const NAME_MAX: usize = 200;
/// Entries of a list in a record.
pub(crate) const ENTRIES_MAX: usize = 10_000;

/// A name that people give: something, in one line, not too long, without blanks around it.
pub(crate) fn name(field: &str, text: &str) -> Result<(), Invalid> {
    if text.trim().is_empty() {
        return Err(invalid(field, "is empty; give a name"));
    }
    if text.trim() != text {
        return Err(invalid(field, "begins or ends with a blank; remove it"));
    }
    line(field, text, NAME_MAX)
}

/// A text of one line with at most `max` bytes; may be empty.
pub(crate) fn line(field: &str, text: &str, max: usize) -> Result<(), Invalid> {
    if text.len() > max {
        let bytes = text.len();
        return Err(invalid(field, format!("has {bytes} bytes; give at most {max}")));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(field, "has a control character or a line break; remove it"));
    }
    Ok(())
}

/// As [`line`], and something must be there.
pub(crate) fn filled(field: &str, text: &str, max: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(invalid(field, "is empty; give a value"));
    }
    line(field, text, max)
}

/// An absolute path.
pub(crate) fn path(field: &str, text: &str) -> Result<(), Invalid> {
    filled(field, text, limits::PATH_BYTES_MAX)?;
    match text.starts_with('/') {
        true => Ok(()),
        false => Err(invalid(field, format!("'{text}' is no absolute path; begin it with /"))),
    }
}

/// A list of names or patterns.
pub(crate) fn list(field: &str, entries: &[String]) -> Result<(), Invalid> {
    count(field, entries.len())?;
    let mut numbered = entries.iter().enumerate();
    numbered.try_for_each(|(at, entry)| {
        filled(&format!("{field}[{at}]"), entry, limits::NAME_BYTES_MAX)
    })
}

/// A list's length.
pub(crate) fn count(field: &str, entries: usize) -> Result<(), Invalid> {
    match entries {
        ..=ENTRIES_MAX => Ok(()),
        _ => Err(invalid(field, format!("has {entries} entries; give at most {ENTRIES_MAX}"))),
    }
}

/// A list without an entry that comes twice.
pub(crate) fn distinct<T: Ord>(field: &str, entries: &[T]) -> Result<(), Invalid> {
    count(field, entries.len())?;
    let mut sorted: Vec<&T> = entries.iter().collect();
    sorted.sort();
    match sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(invalid(field, "names something twice; name it once")),
        false => Ok(()),
    }
}

/// A number within bounds, both allowed.
pub(crate) fn range<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: T,
    min: T,
    max: T,
) -> Result<(), Invalid> {
    match value >= min && value <= max {
        true => Ok(()),
        false => Err(invalid(field, format!("is {value}; give {min} to {max}"))),
    }
}

/// A rate, if there is one: never zero, which would stop everything.
pub(crate) fn rate(field: &str, bytes_per_second: Option<u64>) -> Result<(), Invalid> {
    match bytes_per_second {
        Some(0) => Err(invalid(field, "is 0; leave it out for no limit, or disable the job")),
        _ => Ok(()),
    }
}

/// A number that fits the database's integers.
pub(crate) fn bytes(field: &str, value: u64) -> Result<(), Invalid> {
    range(field, value, 0, i64::MAX as u64)
}
