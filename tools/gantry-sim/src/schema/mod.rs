//! The table of the vSphere types that the simulator speaks, and values of them.
//!
//! In: `types.txt`, written by `generate.py` from pyVmomi's own tables. Out: data objects, enumerations
//! and managed objects by name, with their fields in wire order. Encoding and decoding go by this
//! table, so that no handler can put a field in the wrong place or of the wrong type.

use std::collections::HashMap;
use std::sync::LazyLock;

pub mod value;
pub mod encode;
pub mod decode;

pub use value::{Object, Ref, Value, list, object, reference};

/// What a field holds, regardless of how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// `xsd:boolean`.
    Boolean,
    /// `xsd:byte`.
    Byte,
    /// `xsd:short`.
    Short,
    /// `xsd:int`.
    Int,
    /// `xsd:long`.
    Long,
    /// `xsd:float` and `xsd:double`.
    Double,
    /// `xsd:string`, property paths, method and type names, addresses.
    Text,
    /// `xsd:dateTime`.
    Time,
    /// `xsd:base64Binary`.
    Binary,
    /// `xsd:anyType`: the value says what it is.
    Any,
    /// A reference to a managed object of this type or one below it.
    Reference(&'static str),
    /// An enumeration.
    Enum(&'static str),
    /// A data object of this type or one below it.
    Data(&'static str),
    /// A type that the table leaves out: ignored in requests, never sent.
    Unknown(&'static str),
}

/// A field's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldType {
    /// What one of it is.
    pub base: Base,
    /// Whether it repeats.
    pub array: bool,
    /// Whether it may be absent.
    pub optional: bool,
}

/// A field of a data object, a property of a managed object, a parameter of a method.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its type.
    pub ty: FieldType,
}

/// A data object's type: all fields in wire order, those of its ancestors first.
#[derive(Debug)]
pub struct DataType {
    /// Its name on the wire.
    pub name: &'static str,
    /// The type above it.
    pub base: Option<&'static str>,
    /// All fields.
    pub fields: Vec<Field>,
}

/// A method of a managed object.
#[derive(Debug, Clone)]
pub struct Method {
    /// Its name on the wire.
    pub name: &'static str,
    /// What it returns; nothing for a method without result.
    pub returns: Option<FieldType>,
    /// Its parameters in wire order, without `_this`.
    pub parameters: Vec<Field>,
}

/// A managed object's type with all properties and methods, inherited ones first.
#[derive(Debug)]
pub struct ManagedType {
    /// Its name on the wire.
    pub name: &'static str,
    /// The type above it.
    pub base: Option<&'static str>,
    /// All properties.
    pub properties: Vec<Field>,
    /// All methods that the table has.
    pub methods: Vec<Method>,
}

/// The whole table.
pub struct Schema {
    enums: HashMap<&'static str, Vec<&'static str>>,
    data: HashMap<&'static str, DataType>,
    managed: HashMap<&'static str, ManagedType>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(include_str!("types.txt")));

/// The table.
#[must_use]
pub fn schema() -> &'static Schema {
    &SCHEMA
}

impl Schema {
    fn parse(text: &'static str) -> Self {
        let mut names = HashMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            if let (Some(kind @ ("enum" | "data")), Some(name)) = (words.next(), words.next()) {
                names.insert(name, kind);
            }
        }
        let mut schema =
            Self { enums: HashMap::new(), data: HashMap::new(), managed: HashMap::new() };
        schema.read(text, &names);
        schema.inherit();
        schema
    }

    fn read(&mut self, text: &'static str, names: &HashMap<&'static str, &'static str>) {
        let mut owner = Owner::None;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&'static str> = line.split(' ').collect();
            match words.as_slice() {
                ["enum", name, values @ ..] => {
                    self.enums.insert(name, values.to_vec());
                }
                ["data", name, base] => {
                    let base = (*base != "-").then_some(*base);
                    self.data.insert(name, DataType { name, base, fields: Vec::new() });
                    owner = Owner::Data(name);
                }
                ["managed", name, base] => {
                    let base = (*base != "-").then_some(*base);
                    let (properties, methods) = (Vec::new(), Vec::new());
                    self.managed.insert(name, ManagedType { name, base, properties, methods });
                    owner = Owner::Managed(name);
                }
                ["method", name, returns] => {
                    let Some(on) = owner.managed() else { continue };
                    let returns = (*returns != "-").then(|| field_type(returns, names));
                    if let Some(managed) = self.managed.get_mut(on) {
                        managed.methods.push(Method { name, returns, parameters: Vec::new() });
                    }
                    owner = Owner::Method(on);
                }
                ["", name, notation] => {
                    let field = Field { name, ty: field_type(notation, names) };
                    self.add(owner, field);
                }
                _ => unreachable!("types.txt has the line {line:?}"),
            }
        }
    }

    fn add(&mut self, owner: Owner, field: Field) {
        let fields = match owner {
            Owner::None => None,
            Owner::Data(name) => self.data.get_mut(name).map(|data| &mut data.fields),
            Owner::Managed(name) => self.managed.get_mut(name).map(|m| &mut m.properties),
            Owner::Method(name) => self
                .managed
                .get_mut(name)
                .and_then(|managed| managed.methods.last_mut())
                .map(|method| &mut method.parameters),
        };
        if let Some(fields) = fields {
            fields.push(field);
        }
    }

    /// Puts what ancestors have in front of what each type has itself.
    fn inherit(&mut self) {
        let own: HashMap<_, _> = self.data.iter().map(|(n, d)| (*n, d.fields.clone())).collect();
        let bases: HashMap<_, _> = self.data.iter().map(|(n, d)| (*n, d.base)).collect();
        for data in self.data.values_mut() {
            let line = lineage(data.name, &bases);
            data.fields = line.iter().flat_map(|name| own[name].iter().copied()).collect();
        }
        let own: HashMap<_, _> = self
            .managed
            .iter()
            .map(|(name, m)| (*name, (m.properties.clone(), m.methods.clone())))
            .collect();
        let bases: HashMap<_, _> = self.managed.iter().map(|(n, m)| (*n, m.base)).collect();
        for managed in self.managed.values_mut() {
            let line = lineage(managed.name, &bases);
            managed.properties = line.iter().flat_map(|n| own[n].0.iter().copied()).collect();
            managed.methods = line.iter().flat_map(|n| own[n].1.iter().cloned()).collect();
        }
    }

    /// A data object's type.
    #[must_use]
    pub fn data(&self, name: &str) -> Option<&DataType> {
        self.data.get(name)
    }

    /// An enumeration's values.
    #[must_use]
    pub fn enumeration(&self, name: &str) -> Option<&[&'static str]> {
        self.enums.get(name).map(Vec::as_slice)
    }

    /// A managed object's type.
    #[must_use]
    pub fn managed(&self, name: &str) -> Option<&ManagedType> {
        self.managed.get(name)
    }

    /// The type of that name, if a value of an `anyType` can have it.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Base> {
        let data = self.data.get_key_value(name).map(|(name, _)| Base::Data(name));
        data.or_else(|| self.enums.get_key_value(name).map(|(name, _)| Base::Enum(name)))
    }

    /// Whether a data or managed type is `ancestor` or stands below it.
    #[must_use]
    pub fn is_a(&self, name: &str, ancestor: &str) -> bool {
        let mut at = Some(name);
        while let Some(name) = at {
            if name == ancestor || matches!(ancestor, "ManagedObject" | "DynamicData") {
                return true;
            }
            at = match self.data.get(name) {
                Some(data) => data.base,
                None => self.managed.get(name).and_then(|managed| managed.base),
            };
        }
        false
    }
}

impl ManagedType {
    /// One property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&Field> {
        self.properties.iter().find(|field| field.name == name)
    }

    /// One method.
    #[must_use]
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }
}

impl DataType {
    /// One field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

#[derive(Clone, Copy)]
enum Owner {
    None,
    Data(&'static str),
    Managed(&'static str),
    Method(&'static str),
}

impl Owner {
    fn managed(self) -> Option<&'static str> {
        match self {
            Self::Managed(name) | Self::Method(name) => Some(name),
            Self::None | Self::Data(_) => None,
        }
    }
}

/// The names from the oldest ancestor down to `name`.
fn lineage(
    name: &'static str,
    bases: &HashMap<&'static str, Option<&'static str>>,
) -> Vec<&'static str> {
    let mut line = vec![name];
    let mut at = name;
    while let Some(Some(base)) = bases.get(at) {
        line.insert(0, base);
        at = base;
    }
    line
}

fn field_type(notation: &'static str, names: &HashMap<&'static str, &'static str>) -> FieldType {
    let (rest, optional) = match notation.strip_suffix('?') {
        Some(rest) => (rest, true),
        None => (notation, false),
    };
    let (name, array) = match rest.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (rest, false),
    };
    FieldType { base: base(name, names), array, optional }
}

fn base(name: &'static str, names: &HashMap<&'static str, &'static str>) -> Base {
    if let Some(managed) = name.strip_prefix('@') {
        return Base::Reference(managed);
    }
    match (name, names.get(name).copied()) {
        ("boolean", _) => Base::Boolean,
        ("byte", _) => Base::Byte,
        ("short", _) => Base::Short,
        ("int", _) => Base::Int,
        ("long", _) => Base::Long,
        ("float" | "double", _) => Base::Double,
        ("string", _) => Base::Text,
        ("dateTime", _) => Base::Time,
        ("base64Binary", _) => Base::Binary,
        ("anyType", _) => Base::Any,
        (_, Some("enum")) => Base::Enum(name),
        (_, Some(_)) => Base::Data(name),
        (_, None) => Base::Unknown(name),
    }
}

#[cfg(test)]
mod tests {
    use super::{Base, schema};

    #[test]
    fn the_table_has_ancestors_fields_first_and_knows_descent() {
        let disk = schema().data("VirtualDisk").expect("a type");
        assert_eq!(disk.fields[0].name, "key");
        let capacity = disk.field("capacityInBytes").expect("a field");
        assert_eq!(capacity.ty.base, Base::Long);
        assert!(capacity.ty.optional && !capacity.ty.array);
        assert!(schema().is_a("VirtualMachine", "ManagedEntity"));
        assert!(schema().is_a("VirtualDisk", "VirtualDevice"));
        assert!(!schema().is_a("Datastore", "VirtualMachine"));
        let vm = schema().managed("VirtualMachine").expect("a type");
        assert!(vm.property("name").is_some() && vm.method("PowerOnVM_Task").is_some());
        assert!(vm.method("Destroy_Task").is_some(), "inherited");
    }
}
