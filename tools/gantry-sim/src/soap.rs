//! SOAP envelopes: a request's method and object, an answer's text.
//!
//! In: a document. Out: the method, `_this` and the parameters' element. And back: a value or a
//! fault as a document. Knows nothing of what methods do.

use quick_xml::escape::escape;

use crate::fault::Fault;
use crate::schema::encode::{self, ANY};
use crate::schema::{Base, FieldType, Ref, Value, schema};
use crate::xml::{self, Element};

/// A request that is well-formed; its method may still be unknown.
#[derive(Debug)]
pub struct Request {
    /// The method's name on the wire.
    pub method: String,
    /// The object.
    pub this: Ref,
    /// The parameters.
    pub parameters: Element,
    /// `operationID` of the header, for logs.
    pub operation: Option<String>,
}

/// Reads a request.
///
/// # Errors
/// `InvalidRequest` when it is not XML, no envelope, or names no object.
pub fn request(body: &[u8]) -> Result<Request, Fault> {
    let envelope = xml::parse(body).map_err(Fault::invalid_request)?;
    if envelope.name != "Envelope" {
        return Err(Fault::invalid_request("the document is not a SOAP envelope"));
    }
    let header = envelope.child("Header").and_then(|header| header.child("operationID"));
    let operation = header.map(|id| id.text.clone());
    let call = envelope.children.into_iter().find(|child| child.name == "Body");
    let call = call.and_then(|body| body.children.into_iter().next());
    let mut call = call.ok_or_else(|| Fault::invalid_request("the SOAP body is empty"))?;
    if call.children.first().is_none_or(|first| first.name != "_this") {
        return Err(Fault::invalid_request("the method has no _this"));
    }
    let this = call.children.remove(0);
    let ty = this.attribute("type", false).unwrap_or_default();
    let ty = ty.rsplit_once(':').map_or(ty, |(_, local)| local);
    let id = this.text.trim();
    let Some(managed) = schema().managed(ty) else {
        return Err(Fault::invalid_request(format!("unknown managed object type {ty}")));
    };
    let this = Ref { ty: managed.name, id: id.into() };
    Ok(Request { method: call.name.clone(), this, parameters: call, operation })
}

const OPEN: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<soapenv:Envelope \
xmlns:soapenc=\"http://schemas.xmlsoap.org/soap/encoding/\" \
xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" \
xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\n<soapenv:Body>\n";
const CLOSE: &str = "\n</soapenv:Body>\n</soapenv:Envelope>";

/// An answer.
#[must_use]
pub fn answer(method: &str, value: &Value, returns: Option<FieldType>) -> String {
    let mut out = String::from(OPEN);
    out.push_str(&format!("<{method}Response xmlns=\"urn:vim25\">"));
    encode::element(&mut out, "returnval", value, &returns.unwrap_or(ANY));
    out.push_str(&format!("</{method}Response>"));
    out.push_str(CLOSE);
    out
}

/// A fault.
#[must_use]
pub fn fault(fault: &Fault) -> String {
    let mut out = String::from(OPEN);
    out.push_str("<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>");
    out.push_str(&escape(&fault.message));
    out.push_str("</faultstring><detail>");
    let ty = fault.detail.ty;
    out.push_str(&format!("<{ty}Fault xmlns=\"urn:vim25\" xsi:type=\"{ty}\">"));
    encode::content(&mut out, &fault.detail);
    out.push_str(&format!("</{ty}Fault></detail></soapenv:Fault>"));
    out.push_str(CLOSE);
    out
}

/// What `Fetch`, which no schema has, returns: the property's value with its type.
pub const FETCHED: FieldType = FieldType { base: Base::Any, array: false, optional: true };

/// `GET /sdk/vimServiceVersions.xml`.
pub const VERSIONS: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<namespaces version=\"1.0\">\
<namespace><name>urn:vim25</name><version>8.0.3.0</version><priorVersions>\
<version>8.0.2.0</version><version>8.0.1.0</version><version>8.0.0.1</version>\
<version>7.0.3.0</version><version>7.0</version><version>6.7.3</version><version>6.7</version>\
<version>6.5</version><version>6.0</version><version>5.5</version></priorVersions></namespace>\
</namespaces>\n";
