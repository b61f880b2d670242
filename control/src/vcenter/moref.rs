//! References to managed objects: what every call is made on.
//!
//! A reference holds on the endpoint that gave it and on no other: a snapshot's differs between a
//! vCenter and the ESXi below it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A managed object reference, such as `VirtualMachine:vm-12`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MoRef {
    /// The object's type, such as `VirtualMachine`.
    pub kind: Box<str>,
    /// Its name at this endpoint, such as `vm-12`.
    pub value: Box<str>,
}

impl MoRef {
    /// A reference from its parts.
    pub fn new(kind: &str, value: &str) -> MoRef {
        MoRef { kind: kind.into(), value: value.into() }
    }
}

impl fmt::Display for MoRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.value)
    }
}

/// A virtual machine as errors name it: its reference, and the name that a person knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmRef {
    /// Its reference.
    pub moref: MoRef,
    /// Its name when it was looked up.
    pub name: String,
}

impl VmRef {
    /// A virtual machine from its reference and name.
    pub fn new(moref: MoRef, name: impl Into<String>) -> VmRef {
        VmRef { moref, name: name.into() }
    }
}

impl fmt::Display for VmRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM '{}' ({})", self.name, self.moref)
    }
}
