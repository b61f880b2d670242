//! Reads a vCenter's XML into a small tree, within bounds.
//!
//! In: a document's bytes. Out: an [`Element`] tree with local names, texts, and the two attributes
//! that vSphere uses: `xsi:type` and, on references, `type`. Invariant: nothing outside the document
//! is ever fetched; a document type, an entity beyond the five of XML, or more of anything than
//! [`crate::limits`] allows is an error.

use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::reader::Reader;

use super::moref::MoRef;
use crate::limits;

/// A document that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("XML refused at byte {offset}: {reason}")]
pub struct XmlError {
    /// Where, in bytes from the document's beginning.
    pub offset: u64,
    /// Why.
    pub reason: String,
}

/// An element.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// Its name without a prefix.
    pub name: Box<str>,
    /// `xsi:type` without a prefix.
    pub xsi_type: Option<Box<str>>,
    /// `type`: of what kind the referenced object is.
    pub ref_type: Option<Box<str>>,
    /// The text directly within, white space at its ends removed unless it is all there is.
    pub text: Box<str>,
    /// The elements directly within.
    pub children: Vec<Element>,
}

impl Element {
    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| &*child.name == name)
    }

    /// All children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| &*child.name == name)
    }

    /// The element at a path of names separated by dots.
    pub fn at(&self, path: &str) -> Option<&Element> {
        path.split('.').try_fold(self, |element, name| element.child(name))
    }

    /// The text of the child at a path; an empty one counts as none.
    pub fn text_at(&self, path: &str) -> Option<&str> {
        self.at(path).map(|element| &*element.text).filter(|text| !text.is_empty())
    }

    /// The truth value of the child at a path.
    pub fn bool_at(&self, path: &str) -> Option<bool> {
        self.at(path)?.as_bool()
    }

    /// The number of the child at a path; nothing if it is none or too large for its type.
    pub fn number_at<N: std::str::FromStr>(&self, path: &str) -> Option<N> {
        self.at(path)?.text.trim().parse().ok()
    }

    /// The reference in the child at a path.
    pub fn moref_at(&self, path: &str) -> Option<MoRef> {
        self.at(path)?.as_moref()
    }

    /// This element's text as a truth value (XML Schema allows words and digits).
    pub fn as_bool(&self) -> Option<bool> {
        match self.text.trim() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        }
    }

    /// This element as a reference.
    pub fn as_moref(&self) -> Option<MoRef> {
        let value = self.text.trim();
        let kind = self.ref_type.as_deref()?;
        (!value.is_empty()).then(|| MoRef::new(kind, value))
    }

    /// The type by which vSphere tells apart the subclasses of an element's declared type.
    pub fn kind(&self) -> &str {
        self.xsi_type.as_deref().unwrap_or_default()
    }
}

struct Builder {
    open: Vec<(Element, String)>,
    root: Option<Element>,
    elements: usize,
}

/// Reads a document.
///
/// # Errors
/// Where it is not well-formed, holds what vSphere never sends (a document type, unknown
/// entities), or is larger than a limit.
pub fn parse(document: &[u8]) -> Result<Element, XmlError> {
    let refuse = |offset, reason: &str| XmlError { offset, reason: reason.to_owned() };
    if document.len() > limits::XML_BYTES_MAX {
        return Err(refuse(0, "the document is too large"));
    }
    let text = std::str::from_utf8(document)
        .map_err(|error| refuse(error.valid_up_to() as u64, "it is not UTF-8"))?;
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut builder = Builder { open: Vec::new(), root: None, elements: 0 };
    loop {
        let event = reader.read_event();
        let offset = reader.buffer_position();
        let event = event.map_err(|error| refuse(offset, &error.to_string()))?;
        let taken = match event {
            Event::Start(start) => builder.start(&start),
            Event::End(_) => builder.end(),
            Event::Text(text) => builder.text(&text),
            Event::CData(text) => builder.text(&text),
            Event::GeneralRef(entity) => builder.entity(&entity),
            Event::DocType(_) => Err("it has a document type".to_owned()),
            Event::Eof => break,
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => Ok(()),
        };
        taken.map_err(|reason| refuse(offset, &reason))?;
    }
    let end = document.len() as u64;
    if !builder.open.is_empty() {
        return Err(refuse(end, "it ends within an element"));
    }
    builder.root.ok_or_else(|| refuse(end, "it holds no element"))
}

impl Builder {
    fn start(&mut self, start: &BytesStart<'_>) -> Result<(), String> {
        self.elements += 1;
        if self.elements > limits::XML_ELEMENTS_MAX {
            return Err("it has too many elements".into());
        }
        if self.open.len() >= limits::XML_DEPTH_MAX {
            return Err("its elements are nested too deeply".into());
        }
        if self.open.is_empty() && self.root.is_some() {
            return Err("it has two roots".into());
        }
        let mut element =
            Element { name: short(start.local_name().as_ref())?, ..Element::default() };
        for (count, attribute) in start.attributes().enumerate() {
            if count >= limits::XML_ATTRIBUTES_MAX {
                return Err("an element has too many attributes".into());
            }
            let attribute = attribute.map_err(|error| error.to_string())?;
            let (local, prefix) = attribute.key.decompose();
            if local.as_ref() != "type" {
                continue;
            }
            let value = short(&attribute.value)?;
            if prefix.is_some() {
                let local = value.rsplit(':').next().unwrap_or_default();
                element.xsi_type = Some(local.into());
            } else {
                element.ref_type = Some(value);
            }
        }
        self.open.push((element, String::new()));
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        // The reader has compared the names.
        let (mut element, text) = self.open.pop().ok_or("an element ends that never began")?;
        // Between elements white space is only for the eye.
        if element.children.is_empty() {
            element.text = text.into_boxed_str();
        }
        match self.open.last_mut() {
            Some((parent, _)) => parent.children.push(element),
            None => self.root = Some(element),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), String> {
        match self.open.last_mut() {
            Some((_, whole)) => whole.push_str(text),
            None if text.trim().is_empty() || text == "\u{feff}" => {}
            None => return Err("it has text outside its root".into()),
        }
        Ok(())
    }

    fn entity(&mut self, entity: &BytesRef<'_>) -> Result<(), String> {
        let character = match entity.resolve_char_ref().map_err(|error| error.to_string())? {
            Some(character) => character,
            None => match &**entity {
                "lt" => '<',
                "gt" => '>',
                "amp" => '&',
                "quot" => '"',
                "apos" => '\'',
                _ => return Err("it has an entity of its own".into()),
            },
        };
        let (_, whole) = self.open.last_mut().ok_or("it has text outside its root")?;
        whole.push(character);
        Ok(())
    }
}

fn short(text: &str) -> Result<Box<str>, String> {
    if text.len() > limits::XML_NAME_BYTES_MAX {
        return Err("a name or type is too long".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::{Element, parse};
    use crate::limits;

    fn read(text: &str) -> Element {
        parse(text.as_bytes()).expect(text)
    }

    #[test]
    fn names_types_texts_and_references_are_read() {
        let root = read(
            "<?xml version=\"1.0\"?>\n<e:a xmlns:e=\"x\" xmlns:xsi=\"y\"><obj type=\"VirtualMachine\">\
             vm-1</obj><val xsi:type=\"xsd:string\">a &lt;b&gt; &#x41;&amp;</val><n>7</n><t>1</t><z/>\
             <![CDATA[ ]]></e:a>",
        );
        assert_eq!(&*root.name, "a");
        assert_eq!(root.moref_at("obj").map(|moref| moref.to_string()).as_deref(), Some("vm-1"));
        assert_eq!(root.text_at("val"), Some("a <b> A&"));
        assert_eq!(root.child("val").map(Element::kind), Some("string"));
        assert_eq!((root.number_at::<u8>("n"), root.number_at::<u8>("val")), (Some(7), None));
        assert_eq!(
            (root.bool_at("t"), root.text_at("z"), root.text_at("no.no")),
            (Some(true), None, None)
        );
        assert_eq!(root.moref_at("n"), None, "a number is no reference");
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "<a>".repeat(limits::XML_DEPTH_MAX + 1);
        let attributes: String = (0..40).map(|at| format!(" a{at}=\"\"")).collect();
        let long = "n".repeat(limits::XML_NAME_BYTES_MAX + 1);
        for (text, reason) in [
            ("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>", "document type"),
            ("<a>&b;</a>", "entity"),
            ("<a>&#0;</a>", ""),
            ("<a><b></a></b>", ""),
            ("<a>", "ends within"),
            ("", "no element"),
            ("<a/><b/>", "two roots"),
            ("x<a/>", "outside"),
            ("<a/>&lt;", "outside"),
            (&deep, "deeply"),
            (&format!("<a{attributes}/>"), "attributes"),
            (&format!("<{long}/>"), "too long"),
            ("<a b=\"1\" b=\"2\"/>", ""),
        ] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
        assert!(parse(b"<a>\xff</a>").is_err());
        let many = format!("<a>{}</a>", "<b/>".repeat(limits::XML_ELEMENTS_MAX));
        assert!(parse(many.as_bytes()).expect_err("many").reason.contains("too many"));
    }

    #[test]
    fn mutated_documents_never_panic() {
        let whole = b"<a xsi:type=\"b\"><c type=\"d\">e&amp;<![CDATA[f]]></c><!-- g --><h/></a>";
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            let _ = parse(&bytes);
        }
    }
}
