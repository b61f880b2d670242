//! A bounded reader of XML documents from the network.
//!
//! In: bytes of a request. Out: a tree of elements, or what is wrong. Depth, number of elements and
//! attributes are limited by [`limits`](crate::limits); document types and entities other than
//! XML's own five are refused, so nothing can expand.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::limits;

/// One element, without namespaces: prefixes are dropped from names.
#[derive(Debug, Clone, Default)]
pub struct Element {
    /// The local name.
    pub name: String,
    /// The attributes: whether it was `xsi:`, the local name, the value. Namespaces are left out.
    attributes: Vec<(bool, String, String)>,
    /// The elements inside.
    pub children: Vec<Element>,
    /// The text inside, of all pieces.
    pub text: String,
}

impl Element {
    /// The first child of that name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// An attribute, of the schema instance's namespace (`xsi:`) or of none.
    #[must_use]
    pub fn attribute(&self, name: &str, xsi: bool) -> Option<&str> {
        let mut all = self.attributes.iter();
        all.find(|(of_xsi, key, _)| *of_xsi == xsi && key == name).map(|(_, _, v)| v.as_str())
    }
}

/// Reads a document.
///
/// # Errors
/// Text saying what is not well-formed, or which limit it exceeds.
pub fn parse(document: &[u8]) -> Result<Element, String> {
    let text = std::str::from_utf8(document).map_err(|_| "not UTF-8".to_owned())?;
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut count = 0;
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(start) => {
                count += 1;
                if open.len() >= limits::XML_DEPTH_MAX || count > limits::XML_ELEMENTS_MAX {
                    return Err("too many or too deep elements".into());
                }
                open.push(element(&start)?);
            }
            Event::Empty(start) => {
                count += 1;
                if count > limits::XML_ELEMENTS_MAX {
                    return Err("too many elements".into());
                }
                let element = element(&start)?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
            Event::End(_) => {
                let Some(done) = open.pop() else { return Err("an end without a start".into()) };
                match open.last_mut() {
                    Some(parent) => parent.children.push(done),
                    None => return Ok(done),
                }
            }
            Event::Text(piece) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&piece);
                }
            }
            Event::CData(piece) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&piece);
                }
            }
            Event::GeneralRef(name) => {
                let character = match name.resolve_char_ref().map_err(|e| e.to_string())? {
                    Some(character) => character,
                    None => predefined(&name)?,
                };
                if let Some(element) = open.last_mut() {
                    element.text.push(character);
                }
            }
            Event::DocType(_) => return Err("a document type is refused".into()),
            Event::Eof => return Err("the document ends early".into()),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
        }
    }
}

fn predefined(name: &str) -> Result<char, String> {
    Ok(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return Err("an unknown entity is refused".into()),
    })
}

fn element(start: &BytesStart<'_>) -> Result<Element, String> {
    let name = local(start.name().as_ref());
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let key = attribute.key.as_ref();
        if attributes.len() >= limits::XML_ATTRIBUTES_MAX {
            return Err(format!("too many attributes in {name}"));
        }
        if key != "xmlns" && !key.starts_with("xmlns:") {
            let value = quick_xml::escape::unescape(&attribute.value);
            let value = value.map_err(|error| error.to_string())?.into_owned();
            attributes.push((key.contains(':'), local(key), value));
        }
    }
    Ok(Element { name, attributes, ..Element::default() })
}

fn local(name: &str) -> String {
    name.rsplit_once(':').map_or(name, |(_, local)| local).to_owned()
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::limits;

    #[test]
    fn text_attributes_and_entities_are_read() {
        let root =
            parse(br#"<a:x xmlns:a="u"><b xsi:type="T" type="U">1 &lt; &#50;</b><c/></a:x>"#);
        let root = root.expect("a document");
        let b = root.child("b").expect("b");
        assert_eq!((root.name.as_str(), b.text.as_str()), ("x", "1 < 2"));
        assert_eq!((b.attribute("type", true), b.attribute("type", false)), (Some("T"), Some("U")));
        assert!(root.child("c").is_some());
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "<a>".repeat(limits::XML_DEPTH_MAX + 1);
        let many = format!("<r>{}</r>", "<a/>".repeat(limits::XML_ELEMENTS_MAX));
        let laughs = r#"<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>"#;
        let file = r#"<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>"#;
        for bad in [&deep, &many, laughs, file, "<x>&a;</x>", "<x", "", "<x></y>", "</x>", "<x>"] {
            assert!(parse(bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(40)]);
        }
        assert!(parse(b"<x>\xff</x>").is_err());
    }

    #[test]
    fn random_bytes_and_cut_documents_hurt_nobody() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let good = br#"<e xmlns:s="u"><s:Body><L xsi:type="T"><u>a&amp;b</u><p/></L></s:Body></e>"#;
        for _ in 0..20_000 {
            let mut bytes = good.to_vec();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = *random.choice(b"<>&;/\"'= x!-[]\0\xff").expect("bytes");
            }
            bytes.truncate(random.usize(..=bytes.len()));
            let _ = parse(&bytes);
        }
    }
}
