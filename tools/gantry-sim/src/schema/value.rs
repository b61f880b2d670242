//! Values of the vSphere types: what properties hold and what methods take and return.
//!
//! In: plain Rust values. Out: typed ones, coerced by the table when they are put into a field, so
//! that an `int` field never holds a `long`. A wrong field name is a mistake in the simulator
//! itself and stops it.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Base, FieldType, schema};

/// A reference to a managed object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref {
    /// The object's type.
    pub ty: &'static str,
    /// Its id, unique within an endpoint.
    pub id: Arc<str>,
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ty, self.id)
    }
}

/// A reference to an object of a type that the table has.
///
/// # Panics
/// When the table lacks the type: a mistake in the simulator.
#[must_use]
pub fn reference(ty: &str, id: impl Into<Arc<str>>) -> Ref {
    let managed = schema().managed(ty);
    let Some(managed) = managed else { panic!("types.txt lacks the managed object {ty}") };
    Ref { ty: managed.name, id: id.into() }
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unset: not sent.
    Absent,
    /// A truth.
    Bool(bool),
    /// 8 bits.
    Byte(i8),
    /// 16 bits.
    Short(i16),
    /// 32 bits.
    Int(i32),
    /// 64 bits.
    Long(i64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    Text(Arc<str>),
    /// An instant.
    Time(Timestamp),
    /// Bytes.
    Binary(Arc<[u8]>),
    /// One value of an enumeration.
    Enum(&'static str, Arc<str>),
    /// A managed object.
    Ref(Ref),
    /// A data object.
    Object(Arc<Object>),
    /// Several values of one type.
    Array(Base, Arc<[Value]>),
}

/// A data object: its type, and its fields that are set, in wire order.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The type's name.
    pub ty: &'static str,
    fields: Vec<(&'static str, Value)>,
}

/// A data object of that type.
///
/// # Panics
/// When the table lacks the type or a field: a mistake in the simulator.
#[must_use]
pub fn object<'a>(ty: &str, fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let mut object = Object::new(ty);
    for (name, value) in fields {
        object.set(name, value);
    }
    object.into()
}

/// Several values; the field that takes them gives the type.
#[must_use]
pub fn list<T: Into<Value>>(items: impl IntoIterator<Item = T>) -> Value {
    Value::Array(Base::Any, items.into_iter().map(Into::into).collect())
}

impl Object {
    /// An object without fields.
    ///
    /// # Panics
    /// When the table lacks the type: a mistake in the simulator.
    #[must_use]
    pub fn new(ty: &str) -> Self {
        let data = schema().data(ty);
        let Some(data) = data else { panic!("types.txt lacks the data object {ty}") };
        Self { ty: data.name, fields: Vec::new() }
    }

    /// Sets a field; [`Value::Absent`] unsets it.
    ///
    /// # Panics
    /// When the type has no such field: a mistake in the simulator.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        let data = schema().data(self.ty);
        let position = data.and_then(|data| data.fields.iter().position(|f| f.name == name));
        let (Some(data), Some(position)) = (data, position) else {
            panic!("{} has no field {name}", self.ty)
        };
        self.fields.retain(|(field, _)| *field != name);
        let value = coerce(value.into(), &data.fields[position].ty);
        if value == Value::Absent {
            return;
        }
        let order = |field: &str| data.fields.iter().position(|f| f.name == field);
        let at = self.fields.partition_point(|(field, _)| order(field) < Some(position));
        self.fields.insert(at, (data.fields[position].name, value));
    }

    /// A field; [`Value::Absent`] when it is unset.
    #[must_use]
    pub fn get(&self, name: &str) -> &Value {
        let found = self.fields.iter().find(|(field, _)| *field == name);
        found.map_or(&Value::Absent, |(_, value)| value)
    }

    /// The fields that are set, in wire order.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.fields.iter().map(|(name, value)| (*name, value))
    }
}

/// The value as the field's type wants it.
#[must_use]
pub fn coerce(value: Value, ty: &FieldType) -> Value {
    if !ty.array {
        return coerce_one(value, ty.base);
    }
    match value {
        Value::Array(_, items) if items.is_empty() && ty.optional => Value::Absent,
        Value::Array(_, items) => {
            Value::Array(ty.base, items.iter().map(|v| coerce_one(v.clone(), ty.base)).collect())
        }
        Value::Absent => Value::Absent,
        other => panic!("{other:?} in a field that repeats"),
    }
}

fn coerce_one(value: Value, base: Base) -> Value {
    match (base, value) {
        (Base::Byte, Value::Long(n)) => i8::try_from(n).map_or(Value::Absent, Value::Byte),
        (Base::Short, Value::Long(n)) => i16::try_from(n).map_or(Value::Absent, Value::Short),
        (Base::Int, Value::Long(n)) => i32::try_from(n).map_or(Value::Absent, Value::Int),
        (Base::Long, Value::Int(n)) => Value::Long(i64::from(n)),
        (Base::Enum(name), Value::Text(text)) => {
            let values = schema().enumeration(name).unwrap_or_default();
            assert!(values.contains(&&*text), "{name} has no value {text}");
            Value::Enum(name, text)
        }
        (_, value) => {
            assert!(fits(&value, base), "{value:?} in a field of {base:?}");
            value
        }
    }
}

fn fits(value: &Value, base: Base) -> bool {
    match (base, value) {
        (_, Value::Absent) | (Base::Any, _) => true,
        (Base::Boolean, Value::Bool(_)) => true,
        (Base::Byte, Value::Byte(_)) | (Base::Short, Value::Short(_)) => true,
        (Base::Int, Value::Int(_)) | (Base::Long, Value::Long(_)) => true,
        (Base::Double, Value::Double(_)) | (Base::Text, Value::Text(_)) => true,
        (Base::Time, Value::Time(_)) | (Base::Binary, Value::Binary(_)) => true,
        (Base::Enum(name), Value::Enum(found, _)) => name == *found,
        (Base::Reference(name), Value::Ref(found)) => {
            // A type that the table lacks cannot be checked.
            schema().managed(name).is_none() || schema().is_a(found.ty, name)
        }
        (Base::Data(name), Value::Object(found)) => schema().is_a(found.ty, name),
        _ => false,
    }
}

impl Value {
    /// Follows a path such as `config.hardware.device` or `device[2000]` (by its key); absent when
    /// something on the way is unset.
    #[must_use]
    pub fn at(&self, path: &str) -> &Value {
        let mut at = self;
        for step in path.split('.').filter(|step| !step.is_empty()) {
            let (name, key) = match step.split_once('[') {
                Some((name, key)) => (name, Some(key.trim_end_matches(']').trim_matches('"'))),
                None => (step, None),
            };
            at = at.object().map_or(&Value::Absent, |object| object.get(name));
            if let Some(key) = key {
                at = at.items().iter().find(|item| item.has_key(key)).unwrap_or(&Value::Absent);
            }
        }
        at
    }

    fn has_key(&self, key: &str) -> bool {
        match self.at("key") {
            Value::Int(found) => found.to_string() == key,
            Value::Text(found) => **found == *key,
            _ => false,
        }
    }

    /// Whether it is unset.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        *self == Value::Absent
    }

    /// The data object.
    #[must_use]
    pub fn object(&self) -> Option<&Object> {
        if let Value::Object(object) = self { Some(object) } else { None }
    }

    /// The data object's type; empty for anything else.
    #[must_use]
    pub fn ty(&self) -> &'static str {
        self.object().map_or("", |object| object.ty)
    }

    /// Whether it is a data object of that type or one below it.
    #[must_use]
    pub fn is_a(&self, ty: &str) -> bool {
        self.object().is_some_and(|object| schema().is_a(object.ty, ty))
    }

    /// The items of an array; none for anything else.
    #[must_use]
    pub fn items(&self) -> &[Value] {
        if let Value::Array(_, items) = self { items } else { &[] }
    }

    /// Text, also of an enumeration.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::Enum(_, text) => Some(text),
            _ => None,
        }
    }

    /// A truth.
    #[must_use]
    pub fn bool(&self) -> Option<bool> {
        if let Value::Bool(truth) = self { Some(*truth) } else { None }
    }

    /// Any whole number.
    #[must_use]
    pub fn number(&self) -> Option<i64> {
        match self {
            Value::Byte(n) => Some(i64::from(*n)),
            Value::Short(n) => Some(i64::from(*n)),
            Value::Int(n) => Some(i64::from(*n)),
            Value::Long(n) => Some(*n),
            _ => None,
        }
    }

    /// A managed object.
    #[must_use]
    pub fn reference(&self) -> Option<&Ref> {
        if let Value::Ref(found) = self { Some(found) } else { None }
    }

    /// The managed objects it names: one, or those of an array.
    #[must_use]
    pub fn references(&self) -> Vec<Ref> {
        match self {
            Value::Ref(found) => vec![found.clone()],
            Value::Array(_, items) => {
                items.iter().filter_map(|item| item.reference().cloned()).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Value::Object(Arc::new(object))
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Bool(truth)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Long(number)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Value::Long(i64::from(number))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Long(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Value::from(number as u64)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text.into())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Value::Text(text.as_str().into())
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Self {
        Value::Time(time)
    }
}

impl From<Ref> for Value {
    fn from(reference: Ref) -> Self {
        Value::Ref(reference)
    }
}

impl From<&Ref> for Value {
    fn from(reference: &Ref) -> Self {
        Value::Ref(reference.clone())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Absent, Into::into)
    }
}
