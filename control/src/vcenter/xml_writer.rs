//! Writes a request's XML in the order of the calls: vSphere's schema is order-sensitive.
//!
//! In: names (ours) and texts (anyone's). Out: well-formed XML. A character that XML cannot carry is
//! remembered, and the request refused before it is sent.

use super::moref::MoRef;

/// Collects a request's elements.
#[derive(Debug, Default)]
pub struct XmlWriter {
    out: String,
    unfit: bool,
}

impl XmlWriter {
    /// An empty one.
    pub fn new() -> XmlWriter {
        XmlWriter::default()
    }

    /// `<name>value</name>`.
    pub fn text(&mut self, name: &str, value: &str) -> &mut XmlWriter {
        self.raw_text(name, "", value)
    }

    /// A number or another value whose text needs no escaping.
    pub fn value(&mut self, name: &str, value: impl std::fmt::Display) -> &mut XmlWriter {
        self.raw_text(name, "", &value.to_string())
    }

    /// As [`XmlWriter::text`], if there is a value.
    pub fn optional(&mut self, name: &str, value: Option<&str>) -> &mut XmlWriter {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    /// A reference.
    pub fn moref(&mut self, name: &str, moref: &MoRef) -> &mut XmlWriter {
        let mut kind = String::new();
        self.escape(&moref.kind, &mut kind);
        self.raw_text(name, &format!(" type=\"{kind}\""), &moref.value)
    }

    /// An element with others within.
    pub fn nest(&mut self, name: &str, inside: impl FnOnce(&mut XmlWriter)) -> &mut XmlWriter {
        self.open(name, "", inside)
    }

    /// An element of a subclass.
    pub fn typed(
        &mut self,
        name: &str,
        xsi_type: &str,
        inside: impl FnOnce(&mut XmlWriter),
    ) -> &mut XmlWriter {
        self.open(name, &format!(" xsi:type=\"{xsi_type}\""), inside)
    }

    /// What was written; nothing if a text held what XML cannot carry.
    pub fn finish(self) -> Option<String> {
        (!self.unfit).then_some(self.out)
    }

    fn open(
        &mut self,
        name: &str,
        attributes: &str,
        inside: impl FnOnce(&mut XmlWriter),
    ) -> &mut XmlWriter {
        self.out.push_str(&format!("<{name}{attributes}>"));
        inside(self);
        self.out.push_str(&format!("</{name}>"));
        self
    }

    fn raw_text(&mut self, name: &str, attributes: &str, value: &str) -> &mut XmlWriter {
        let mut escaped = String::with_capacity(value.len());
        self.escape(value, &mut escaped);
        self.out.push_str(&format!("<{name}{attributes}>{escaped}</{name}>"));
        self
    }

    fn escape(&mut self, text: &str, out: &mut String) {
        for character in text.chars() {
            match character {
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '&' => out.push_str("&amp;"),
                '"' => out.push_str("&quot;"),
                // Unescaped, a reader would turn it into a line feed.
                '\r' => out.push_str("&#13;"),
                '\t' | '\n' => out.push(character),
                '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => self.unfit = true,
                _ => out.push(character),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MoRef, XmlWriter};
    use crate::vcenter::xml;

    #[test]
    fn what_is_written_reads_back() {
        let mut writer = XmlWriter::new();
        let password = "<&>\"'é]]>\n\r\t";
        writer.nest("a", |w| {
            w.text("b", password).value("c", 7).optional("d", None);
            w.moref("e", &MoRef::new("V\"M", "vm-1"));
        });
        let root = xml::parse(writer.finish().expect("fit").as_bytes()).expect("XML");
        assert_eq!(root.text_at("b"), Some(password));
        assert_eq!(root.number_at("c"), Some(7));
        assert!(root.child("d").is_none() && root.child("e").is_some());
    }

    #[test]
    fn what_xml_cannot_carry_is_refused() {
        let mut writer = XmlWriter::new();
        writer.text("a", "b\0c");
        assert_eq!(writer.finish(), None);
    }
}
