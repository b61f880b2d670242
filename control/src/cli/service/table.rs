//! Lists as text: a line each, columns under each other. Pure.
//!
//! In: JSON objects, columns. Out: lines. What is no plain text is shown as JSON; control characters
//! of foreign names are replaced, so that no name can write to the terminal.

use serde_json::Value;

/// A column: its title, where its value stands (JSON pointer), how it is shown.
pub(super) type Column = (&'static str, &'static str, Show);

/// How a value is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// As it is.
    Plain,
    /// Bytes, with a unit.
    Bytes,
    /// Milliseconds since 1970, as UTC.
    Time,
    /// The number of its entries.
    Count,
}

/// The title's line and a line for each item.
pub(super) fn lines(items: &[Value], columns: &[Column]) -> Vec<String> {
    let title = columns.iter().map(|(title, ..)| (*title).to_owned()).collect();
    let row = |item: &Value| {
        let cell = |(_, at, how): &Column| cell(item.pointer(at).unwrap_or(&Value::Null), *how);
        columns.iter().map(cell).collect::<Vec<String>>()
    };
    let rows: Vec<Vec<String>> = std::iter::once(title).chain(items.iter().map(row)).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.into_iter().map(line).collect()
}

fn cell(value: &Value, how: Show) -> String {
    let text = match (how, value) {
        (_, Value::Null) => "-".to_owned(),
        (Show::Bytes, value) if value.is_u64() => bytes(value.as_u64().unwrap_or(0)),
        (Show::Time, value) if value.is_u64() => time(value.as_u64().unwrap_or(0)),
        (Show::Count, Value::Array(items)) => items.len().to_string(),
        (_, Value::String(text)) => text.clone(),
        (_, other) => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Bytes with a binary unit.
pub(super) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

fn time(milliseconds: u64) -> String {
    let at =
        i64::try_from(milliseconds).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| milliseconds.to_string(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::{Show, lines};
    use serde_json::json;

    #[test]
    fn columns_stand_under_each_other_and_names_write_nothing_to_the_terminal() {
        let items = [
            json!({ "name": "a\u{1b}[2J", "size": 3 << 20, "at": 0, "disks": [1, 2] }),
            json!({ "name": "longer" }),
        ];
        let columns = [
            ("NAME", "/name", Show::Plain),
            ("SIZE", "/size", Show::Bytes),
            ("AT", "/at", Show::Time),
            ("DISKS", "/disks", Show::Count),
        ];
        assert_eq!(
            lines(&items, &columns),
            [
                "NAME    SIZE      AT                    DISKS",
                "a?[2J   3.00 MiB  1970-01-01 00:00:00Z  2",
                "longer  -         -                     -",
            ]
        );
    }
}
