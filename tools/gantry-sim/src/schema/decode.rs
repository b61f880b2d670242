//! XML to values, by the table: what a request may hold, in which order, of which type.
//!
//! In: an element and the type that its place declares. Out: a typed value, or what is wrong with
//! it. Strict where real servers are strict: unknown elements and wrong order are refused, so that
//! a client's mistake shows here first.

use std::sync::Arc;

use super::value::{Object, Ref, Value, coerce};
use super::{Base, Field, FieldType, schema};
use crate::xml::Element;

/// Reads the children of a request's or data object's element as these fields.
///
/// # Errors
/// Text saying which element is unknown, out of order, missing or of the wrong type.
pub fn fields(
    element: &Element,
    fields: &[Field],
    mut put: impl FnMut(&Field, Value),
) -> Result<(), String> {
    let mut children = element.children.iter().peekable();
    for field in fields {
        let mut items = Vec::new();
        while let Some(child) = children.next_if(|child| child.name == field.name) {
            items.push(one(child, field.ty.base)?);
            if !field.ty.array {
                break;
            }
        }
        if items.is_empty() {
            let required = !field.ty.optional && !field.ty.array;
            if required && !matches!(field.ty.base, Base::Unknown(_)) {
                let found = children.peek().map_or("the end", |child| child.name.as_str());
                let (name, parent) = (field.name, &element.name);
                return Err(format!("expected element {name} in {parent}, found {found}"));
            }
            continue;
        }
        let value = if field.ty.array {
            Value::Array(field.ty.base, items.into())
        } else {
            items.pop().unwrap_or(Value::Absent)
        };
        put(field, value);
    }
    match children.next() {
        Some(child) => {
            Err(format!("unexpected element {} in {} (or out of order)", child.name, element.name))
        }
        None => Ok(()),
    }
}

fn one(element: &Element, declared: Base) -> Result<Value, String> {
    let named = element.attribute("type", true).map(local);
    let base = match named {
        Some(name) => actual(name, declared).ok_or_else(|| format!("unknown xsi:type {name}"))?,
        None => FieldType { base: declared, array: false, optional: true },
    };
    if base.array {
        let items: Result<Arc<[Value]>, String> =
            element.children.iter().map(|child| one(child, base.base)).collect();
        return Ok(Value::Array(base.base, items?));
    }
    let text = element.text.trim();
    let wrong = || format!("{text:?} in {} is not of its type", element.name);
    Ok(match base.base {
        Base::Boolean => Value::Bool(match text {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return Err(wrong()),
        }),
        Base::Byte => Value::Byte(text.parse().map_err(|_| wrong())?),
        Base::Short => Value::Short(text.parse().map_err(|_| wrong())?),
        Base::Int => Value::Int(text.parse().map_err(|_| wrong())?),
        Base::Long => Value::Long(text.parse().map_err(|_| wrong())?),
        Base::Double => Value::Double(text.parse().map_err(|_| wrong())?),
        Base::Text => Value::from(element.text.as_str()),
        Base::Time => Value::Time(text.parse().map_err(|_| wrong())?),
        Base::Binary | Base::Unknown(_) => Value::Absent,
        Base::Any => return Err(format!("{} says no xsi:type", element.name)),
        Base::Reference(above) => {
            let ty = element.attribute("type", false).unwrap_or_default();
            let managed = schema().managed(local(ty));
            let ty = managed.map(|managed| managed.name).ok_or_else(wrong)?;
            if schema().managed(above).is_some() && !schema().is_a(ty, above) {
                return Err(format!("{} is a {ty}, not a {above}", element.name));
            }
            Value::Ref(Ref { ty, id: text.into() })
        }
        Base::Enum(name) => {
            let known = schema().enumeration(name).unwrap_or_default().contains(&text);
            if !known {
                return Err(format!("{text:?} is not a {name}"));
            }
            Value::Enum(name, text.into())
        }
        Base::Data(name) => data(element, name)?,
    })
}

fn data(element: &Element, name: &'static str) -> Result<Value, String> {
    let ty = schema().data(name).ok_or_else(|| format!("unknown type {name}"))?;
    let mut object = Object::new(name);
    fields(element, &ty.fields, |field, value| object.set(field.name, coerce(value, &field.ty)))?;
    Ok(object.into())
}

/// The type that an `xsi:type` names, if it may stand where `declared` does.
fn actual(name: &str, declared: Base) -> Option<FieldType> {
    let single = |base| FieldType { base, array: false, optional: true };
    if let Some(item) = name.strip_prefix("ArrayOf") {
        let base = simple(item).or_else(|| schema().named(item))?;
        return (declared == Base::Any).then_some(FieldType { base, array: true, optional: true });
    }
    if let Some(base) = simple(name) {
        let fits = declared == Base::Any || declared == base;
        if matches!((declared, base), (Base::Reference(_), Base::Reference(_))) {
            return Some(single(declared));
        }
        return fits.then_some(single(base));
    }
    let base = match (declared, schema().named(name)) {
        (Base::Any, found) => found?,
        (Base::Data(above), Some(found @ Base::Data(below))) => {
            schema().is_a(below, above).then_some(found)?
        }
        (Base::Enum(declared), Some(found @ Base::Enum(named))) => {
            (declared == named).then_some(found)?
        }
        (Base::Unknown(_), _) => declared,
        _ => return None,
    };
    Some(single(base))
}

fn simple(name: &str) -> Option<Base> {
    Some(match name {
        "boolean" | "Boolean" => Base::Boolean,
        "byte" | "Byte" => Base::Byte,
        "short" | "Short" => Base::Short,
        "int" | "Int" => Base::Int,
        "long" | "Long" => Base::Long,
        "float" | "double" | "Float" | "Double" => Base::Double,
        "string" | "String" => Base::Text,
        "dateTime" | "DateTime" => Base::Time,
        "base64Binary" | "Base64Binary" => Base::Binary,
        "ManagedObjectReference" => Base::Reference("ManagedObject"),
        _ => return None,
    })
}

/// A qualified name without its prefix.
fn local(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}
