//! Values to XML, in the field order and with the `xsi:type`s of the table.
//!
//! In: a value and the type that its place declares. Out: elements appended to a text. A type is
//! named only where it differs from the declared one, as real servers do.

use std::fmt::Write as _;

use quick_xml::escape::escape;

use super::value::{Object, Value};
use super::{Base, Field, FieldType, schema};

/// Where anything may stand.
pub const ANY: FieldType = FieldType { base: Base::Any, array: false, optional: true };

/// Appends a field: one element, one for each item if it repeats, none if it is unset.
pub fn field(out: &mut String, field: &Field, value: &Value) {
    element(out, field.name, value, &field.ty);
}

/// Appends an element, or several, of the declared type.
pub fn element(out: &mut String, name: &str, value: &Value, declared: &FieldType) {
    if !declared.array {
        return one(out, name, value, declared.base);
    }
    for item in value.items() {
        one(out, name, item, declared.base);
    }
}

fn one(out: &mut String, name: &str, value: &Value, declared: Base) {
    if value.is_absent() {
        return;
    }
    let _ = write!(out, "<{name}");
    let any = declared == Base::Any;
    match value {
        Value::Object(object) => {
            if declared != Base::Data(object.ty) {
                let _ = write!(out, " xsi:type=\"{}\"", object.ty);
            }
            out.push('>');
            content(out, object);
        }
        Value::Array(base, items) => {
            let _ = write!(out, " xsi:type=\"ArrayOf{}\">", array_name(*base));
            for item in &**items {
                one(out, item_name(*base), item, *base);
            }
        }
        Value::Ref(reference) => {
            if any {
                out.push_str(" xsi:type=\"ManagedObjectReference\"");
            }
            let _ = write!(out, " type=\"{}\">{}", reference.ty, escape(&*reference.id));
        }
        simple => {
            if any {
                let _ = write!(out, " xsi:type=\"{}\"", simple_name(simple));
            }
            out.push('>');
            text(out, simple);
        }
    }
    let _ = write!(out, "</{name}>");
}

/// Appends a data object's fields, without an element around them.
pub fn content(out: &mut String, object: &Object) {
    let Some(data) = schema().data(object.ty) else { return };
    for (name, value) in object.fields() {
        if let Some(found) = data.field(name) {
            field(out, found, value);
        }
    }
}

fn text(out: &mut String, value: &Value) {
    let _ = match value {
        Value::Bool(truth) => write!(out, "{truth}"),
        Value::Byte(n) => write!(out, "{n}"),
        Value::Short(n) => write!(out, "{n}"),
        Value::Int(n) => write!(out, "{n}"),
        Value::Long(n) => write!(out, "{n}"),
        Value::Double(n) => write!(out, "{n}"),
        Value::Time(time) => write!(out, "{time:.6}"),
        Value::Text(text) | Value::Enum(_, text) => write!(out, "{}", escape(clean(text))),
        Value::Binary(bytes) => write!(out, "{}", base64(bytes)),
        Value::Absent | Value::Ref(_) | Value::Object(_) | Value::Array(..) => Ok(()),
    };
}

/// Without the characters that XML cannot hold at all.
fn clean(text: &str) -> String {
    text.chars().filter(|c| *c >= ' ' || matches!(c, '\t' | '\n' | '\r')).collect()
}

fn simple_name(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "xsd:boolean",
        Value::Byte(_) => "xsd:byte",
        Value::Short(_) => "xsd:short",
        Value::Int(_) => "xsd:int",
        Value::Long(_) => "xsd:long",
        Value::Double(_) => "xsd:double",
        Value::Time(_) => "xsd:dateTime",
        Value::Binary(_) => "xsd:base64Binary",
        Value::Enum(name, _) => name,
        _ => "xsd:string",
    }
}

/// What follows `ArrayOf`.
#[must_use]
pub fn array_name(base: Base) -> &'static str {
    match base {
        Base::Boolean => "Boolean",
        Base::Byte => "Byte",
        Base::Short => "Short",
        Base::Int => "Int",
        Base::Long => "Long",
        Base::Double => "Double",
        Base::Text => "String",
        Base::Time => "DateTime",
        Base::Binary => "Base64Binary",
        Base::Any => "AnyType",
        Base::Reference(_) => "ManagedObjectReference",
        Base::Enum(name) | Base::Data(name) | Base::Unknown(name) => name,
    }
}

fn item_name(base: Base) -> &'static str {
    match base {
        Base::Boolean => "boolean",
        Base::Byte => "byte",
        Base::Short => "short",
        Base::Int => "int",
        Base::Long => "long",
        Base::Double => "double",
        Base::Text => "string",
        Base::Time => "dateTime",
        Base::Binary => "base64Binary",
        Base::Any => "anyType",
        other => array_name(other),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648, with padding).
fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = word >> (18 - 6 * place) & 63;
            out.push(if place <= chunk.len() { ALPHABET[digit as usize] as char } else { '=' });
        }
    }
    out
}
