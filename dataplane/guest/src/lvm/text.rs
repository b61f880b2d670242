//! The text in which LVM2 writes its metadata.
//!
//! In: bytes. Out: sections of named values. Invariant: size, count and nesting are bounded. Must not:
//! know what the names mean. Source: `man lvm.conf` (the same grammar), lvm2 `libdm/libdm-config.c`.

use crate::limits;
use crate::volume::Refused;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// Named values in the order of the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    entries: Vec<(String, Value)>,
}

impl Section {
    fn value(&self, name: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// A number by its name.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.value(name) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// A text by its name.
    pub(super) fn string(&self, name: &str) -> Option<&str> {
        match self.value(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The texts of a list; none if there is no such list.
    pub(super) fn strings(&self, name: &str) -> Vec<&str> {
        let mut found = Vec::new();
        if let Some(value) = self.value(name) {
            texts(value, &mut found);
        }
        found
    }

    /// Every text in this section and in its lists, not in sections beneath it.
    pub(super) fn all_strings(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.entries.iter().for_each(|(_, value)| texts(value, &mut found));
        found
    }

    /// A section by its name.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        match self.value(name) {
            Some(Value::Section(section)) => Some(section),
            _ => None,
        }
    }

    /// All sections.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.entries.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }

    /// The one section that there is.
    pub(super) fn take_only_section(&mut self) -> Result<(String, Section), Refused> {
        let mut sections =
            std::mem::take(&mut self.entries).into_iter().filter_map(|(name, value)| match value {
                Value::Section(section) => Some((name, section)),
                _ => None,
            });
        match (sections.next(), sections.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(Refused::new("its LVM metadata does not describe one volume group")),
        }
    }

    /// `stripes = [ "pv0", 7 ]`: the physical volume's name and its first extent.
    pub(super) fn stripe(&self) -> Option<(&str, u64)> {
        match self.value("stripes") {
            Some(Value::List(values)) => match values.as_slice() {
                [Value::Text(name), Value::Number(first)] => Some((name, *first)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn texts<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Text(text) => into.push(text),
        Value::List(values) => values.iter().for_each(|value| texts(value, into)),
        Value::Number(_) | Value::Section(_) => {}
    }
}

/// Reads a whole text.
///
/// # Errors
/// It is not in the grammar, or beyond the limits.
pub(super) fn parse(bytes: &[u8]) -> Result<Section, Refused> {
    // The text ends with a zero byte.
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end])
        .map_err(|_| Refused::new("its LVM metadata is no text"))?;
    let mut parser = Parser { rest: text, nodes: 0, depth: 0 };
    let section = parser.section(true)?;
    Ok(section)
}

struct Parser<'a> {
    rest: &'a str,
    nodes: usize,
    depth: usize,
}

impl Parser<'_> {
    fn wrong() -> Refused {
        Refused::new("its LVM metadata cannot be understood")
    }

    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.rest = &self.rest[end..];
        }
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip();
        let rest = self.rest.strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn deeper(&mut self) -> Result<(), Refused> {
        self.depth += 1;
        if self.depth > limits::LVM_DEPTH_MAX {
            return Err(Refused::new("its LVM metadata is nested too deeply"));
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), Refused> {
        self.nodes += 1;
        if self.nodes > limits::LVM_NODES_MAX {
            return Err(Refused::new("its LVM metadata has too many values"));
        }
        Ok(())
    }

    fn section(&mut self, outermost: bool) -> Result<Section, Refused> {
        self.deeper()?;
        let mut section = Section::default();
        loop {
            if !outermost && self.take('}') {
                self.depth -= 1;
                return Ok(section);
            }
            self.skip();
            if self.rest.is_empty() {
                return if outermost { Ok(section) } else { Err(Parser::wrong()) };
            }
            self.count()?;
            let name = self.name()?;
            let value = if self.take('{') {
                Value::Section(self.section(false)?)
            } else if self.take('=') {
                self.value()?
            } else {
                return Err(Parser::wrong());
            };
            section.entries.push((name, value));
        }
    }

    fn name(&mut self) -> Result<String, Refused> {
        let ends = |c: char| c.is_whitespace() || "={}[]\",#".contains(c);
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(Parser::wrong());
        }
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn value(&mut self) -> Result<Value, Refused> {
        self.count()?;
        if self.take('[') {
            return self.list();
        }
        if self.take('"') {
            return self.text();
        }
        let word = self.name()?;
        // Negative and broken numbers stand nowhere that matters.
        Ok(word.parse().map(Value::Number).unwrap_or(Value::Text(word)))
    }

    fn list(&mut self) -> Result<Value, Refused> {
        self.deeper()?;
        let mut values = Vec::new();
        while !self.take(']') {
            values.push(self.value()?);
            if !self.take(',') && !self.rest.starts_with(']') {
                return Err(Parser::wrong());
            }
        }
        self.depth -= 1;
        Ok(Value::List(values))
    }

    fn text(&mut self) -> Result<Value, Refused> {
        let mut text = String::new();
        let mut escaped = false;
        for (at, sign) in self.rest.char_indices() {
            match sign {
                _ if escaped => {
                    text.push(sign);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(Value::Text(text));
                }
                _ => text.push(sign),
            }
        }
        Err(Parser::wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_lists_and_escapes_are_read() {
        let text = b"# made by hand\nvg {\n seqno = 3 flags = [] \n lv-1 { status = [\"READ\", \"VISIBLE\"]\n \
            stripes = [\n \"pv0\", 12\n ] } note = \"a \\\"b\\\"\" } contents = \"x\"\0rest";
        let (name, group) = parse(text).unwrap().take_only_section().unwrap();
        assert_eq!((name.as_str(), group.number("seqno")), ("vg", Some(3)));
        assert_eq!(group.string("note"), Some("a \"b\""));
        let volume = group.section("lv-1").unwrap();
        assert_eq!(volume.strings("status"), ["READ", "VISIBLE"]);
        assert_eq!(volume.stripe(), Some(("pv0", 12)));
    }

    #[test]
    fn broken_and_endless_texts_are_refused() {
        let deep = "a { ".repeat(1000);
        let lists = format!("a = {}", "[".repeat(1000));
        for text in ["a {", "a", "= 3", "a = [1 2]", "a = \"x", "a = }", "}", &deep, &lists] {
            parse(text.as_bytes()).unwrap_err();
        }
        parse(&[0xff, 0xfe]).unwrap_err();
    }
}
