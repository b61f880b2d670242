//! The envelope around a call and around its answer.
//!
//! In: a method's name, its object and its arguments; an answer's bytes. Out: the request's body;
//! the answer's result element, or a fault. Does no I/O.

use super::error::ErrorKind;
use super::fault::{Fault, FaultKind};
use super::moref::MoRef;
use super::xml::{self, Element};
use super::xml_writer::XmlWriter;
use crate::limits;

/// The beginning of every request (SOAP 1.1).
const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
    <soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
    xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" \
    xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>";
const TAIL: &str = "</soapenv:Body></soapenv:Envelope>";

/// A request's body; nothing if an argument holds what XML cannot carry.
pub fn request(
    method: &str,
    this: &MoRef,
    arguments: impl FnOnce(&mut XmlWriter),
) -> Option<String> {
    let mut writer = XmlWriter::new();
    writer.moref("_this", this);
    arguments(&mut writer);
    let inside = writer.finish()?;
    Some(format!("{HEAD}<{method} xmlns=\"urn:vim25\">{inside}</{method}>{TAIL}"))
}

/// The element `…Response` of an answer, whose children are its `returnval`s.
///
/// # Errors
/// A fault, or a document that is no answer to `method`.
pub fn response(method: &str, document: &[u8]) -> Result<Element, ErrorKind> {
    let envelope = xml::parse(document)?;
    if &*envelope.name != "Envelope" {
        return Err(ErrorKind::Unexpected(format!("<{}> is no envelope", quoted(&envelope.name))));
    }
    let body = envelope.children.into_iter().find(|child| &*child.name == "Body");
    let inside = body.and_then(|body| body.children.into_iter().next());
    let inside = inside.ok_or_else(|| ErrorKind::Unexpected("an empty envelope".into()))?;
    if &*inside.name == "Fault" {
        return Err(ErrorKind::Fault(fault(&inside)));
    }
    if inside.name.strip_suffix("Response") != Some(method) {
        return Err(ErrorKind::Unexpected(format!("<{}>", quoted(&inside.name))));
    }
    Ok(inside)
}

fn fault(element: &Element) -> Fault {
    let message = element.text_at("faultstring").unwrap_or_default();
    match element.child("detail").and_then(|detail| detail.children.first()) {
        Some(detail) => Fault::parse(detail, message),
        None => {
            let code = element.text_at("faultcode").unwrap_or_default();
            // vSphere answers so when it cannot even find the method or the type.
            let kind = if message.contains("Unable to resolve WSDL method name") {
                FaultKind::MethodNotFound
            } else {
                FaultKind::Other { fault: quoted(code) }
            };
            Fault { kind, message: quoted(message) }
        }
    }
}

/// A foreign text, fit to stand in a message: short and on one line.
pub fn quoted(text: &str) -> String {
    let mut out = String::new();
    for character in text.trim().chars() {
        if out.len() >= limits::QUOTED_BYTES_MAX {
            out.push('…');
            break;
        }
        out.push(if character.is_control() { ' ' } else { character });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{ErrorKind, FaultKind, MoRef, quoted, request, response};

    const ANSWER: &str = "<Envelope><Body><LoginResponse><returnval><key>k</key></returnval>\
                          </LoginResponse></Body></Envelope>";

    #[test]
    fn an_answer_is_unpacked_only_for_its_own_method() {
        let element = response("Login", ANSWER.as_bytes()).expect("an answer");
        assert_eq!(element.text_at("returnval.key"), Some("k"));
        for (method, document) in
            [("Logout", ANSWER), ("Login", "<a/>"), ("Login", "<Envelope><Body/></Envelope>")]
        {
            let error = response(method, document.as_bytes()).expect_err(document);
            assert!(matches!(error, ErrorKind::Unexpected(_)), "{error}");
        }
        assert!(matches!(response("Login", b"<!DOCTYPE a>"), Err(ErrorKind::Document(_))));
    }

    #[test]
    fn faults_without_detail_keep_their_text() {
        let text = "<Envelope><Body><Fault><faultcode>ServerFaultCode</faultcode><faultstring>\
                    Unable to resolve WSDL method name X for Y</faultstring></Fault></Body></Envelope>";
        let Err(ErrorKind::Fault(fault)) = response("X", text.as_bytes()) else {
            panic!("a fault")
        };
        assert_eq!(fault.kind, FaultKind::MethodNotFound);
    }

    #[test]
    fn requests_carry_the_object_and_hostile_texts_are_cut() {
        let body = request("Destroy_Task", &MoRef::new("VirtualMachine", "vm-1"), |_| {});
        let expected =
            "<Destroy_Task xmlns=\"urn:vim25\"><_this type=\"VirtualMachine\">vm-1</_this>";
        assert!(body.expect("a body").contains(expected));
        assert!(quoted(&"x\n".repeat(10_000)).len() < 400);
    }
}
