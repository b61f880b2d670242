//! Change ids: `UUID/sequence`. The UUID names the tracker, which a reset replaces.

use std::fmt;
use std::str::FromStr;

/// A change id, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeId {
    /// As the server wrote it, which is also how it is sent back.
    text: Box<str>,
    /// The tracker's UUID: digits alone, lower case.
    tracker: Box<str>,
    /// Grows with each snapshot.
    sequence: u64,
}

/// A text that is no change id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no change id of the form UUID/number")]
pub struct ChangeIdParseError(String);

impl ChangeId {
    /// The sequence number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether both come from the same tracker.
    pub fn has_tracker_of(&self, other: &ChangeId) -> bool {
        self.tracker == other.tracker
    }

    /// As the server wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for ChangeId {
    type Err = ChangeIdParseError;

    fn from_str(text: &str) -> Result<ChangeId, ChangeIdParseError> {
        let error = || ChangeIdParseError(text.chars().take(80).collect());
        let (uuid, sequence) = text.rsplit_once('/').ok_or_else(error)?;
        let separators = |c: &char| *c != ' ' && *c != '-';
        let digits: String = uuid.chars().filter(separators).collect::<String>().to_lowercase();
        let is_uuid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_number = !sequence.is_empty() && sequence.bytes().all(|byte| byte.is_ascii_digit());
        if text.len() > 128 || !is_uuid || !is_number {
            return Err(error());
        }
        let sequence = sequence.parse().map_err(|_| error())?;
        Ok(ChangeId { text: text.into(), tracker: digits.into(), sequence })
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::ChangeId;

    #[test]
    fn change_ids_are_taken_apart() {
        let one: ChangeId =
            "52 de 8a 3c 18 1c 4c 2d-ab 12 cd 34 ef 56 78 9a/412".parse().expect("a change id");
        let other: ChangeId =
            "52DE8A3C-181C-4C2D-AB12-CD34EF56789A/413".parse().expect("a change id");
        assert!(one.has_tracker_of(&other) && one.sequence() == 412);
        assert!(one.as_str().starts_with("52 de"), "it is sent back as it came");
        let long = "1".repeat(400);
        for bad in [
            "*",
            "",
            "/",
            "x/1",
            "52/1",
            "52de8a3c-181c-4c2d-ab12-cd34ef56789a/",
            "52de8a3c-181c-4c2d-ab12-cd34ef56789a/-1",
            "52de8a3c-181c-4c2d-ab12-cd34ef56789a/+1",
            "52de8a3c-181c-4c2d-ab12-cd34ef56789a/99999999999999999999",
            long.as_str(),
        ] {
            assert!(bad.parse::<ChangeId>().is_err(), "{bad}");
        }
    }
}
