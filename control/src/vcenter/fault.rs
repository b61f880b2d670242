//! Faults: what vSphere answers instead of a result, told apart by what a caller does about it.
//!
//! In: the fault element of a SOAP answer, of a failed task or of a property that could not be
//! read. Out: a [`Fault`]. Source: the fault types of the vSphere Web Services API reference.

use std::fmt;

use super::moref::MoRef;
use super::xml::Element;

/// What kind of fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no session, or it has ended.
    NotAuthenticated,
    /// User name or password are wrong.
    InvalidLogin,
    /// The user may not do this.
    NoPermission {
        /// The privilege that is missing, such as `VirtualMachine.State.CreateSnapshot`.
        privilege: String,
        /// On what.
        object: Option<MoRef>,
    },
    /// The object's state forbids it (powered off, suspended, disconnected …).
    InvalidState {
        /// The fault's type, such as `InvalidPowerState`.
        fault: String,
    },
    /// A file is missing, locked or not accessible.
    FileFault {
        /// The fault's type, such as `FileLocked`.
        fault: String,
        /// Datastore path.
        file: String,
    },
    /// The object is gone, or the reference is from another endpoint.
    ManagedObjectNotFound {
        /// Which.
        object: Option<MoRef>,
    },
    /// The endpoint does not know the method.
    MethodNotFound,
    /// It knows the method, but not here (host version, licence, object type).
    NotSupported {
        /// The fault's type.
        fault: String,
    },
    /// An argument is wrong.
    InvalidArgument {
        /// Which, where the fault says so.
        property: String,
    },
    /// Another task works on the object.
    TaskInProgress,
    /// The object is in use or changed meanwhile; a little later it may go.
    Busy {
        /// The fault's type, such as `ConcurrentAccess`.
        fault: String,
    },
    /// A host or the service behind it does not answer.
    HostUnreachable {
        /// The fault's type, such as `HostCommunication`.
        fault: String,
    },
    /// A snapshot could not be made, for a reason of its own (quiescing, configuration).
    SnapshotFault {
        /// The fault's type, such as `ApplicationQuiesceFault`.
        fault: String,
    },
    /// The task was cancelled.
    RequestCanceled,
    /// The property collector no longer knows the version that was asked for.
    InvalidCollectorVersion,
    /// Anything else.
    Other {
        /// The fault's type.
        fault: String,
    },
}

/// A fault with the text that the server sends along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// The server's words.
    pub message: String,
}

impl Fault {
    /// Reads a fault: `detail` is the element whose `xsi:type` is the fault's type.
    pub fn parse(detail: &Element, message: &str) -> Fault {
        let named = detail.name.strip_suffix("Fault").unwrap_or(&detail.name);
        let name = detail.xsi_type.as_deref().unwrap_or(named);
        Fault { kind: kind_of(name, detail), message: super::soap::quoted(message) }
    }

    /// Reads a `LocalizedMethodFault`, as tasks and missing properties carry it.
    pub fn parse_localized(element: &Element) -> Fault {
        let message = element.text_at("localizedMessage").unwrap_or_default();
        match element.child("fault") {
            Some(fault) => Fault::parse(fault, message),
            None => Fault {
                kind: FaultKind::Other { fault: "unknown".into() },
                message: super::soap::quoted(message),
            },
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::TaskInProgress | FaultKind::Busy { .. } | FaultKind::HostUnreachable { .. }
        )
    }
}

fn kind_of(name: &str, detail: &Element) -> FaultKind {
    let fault = || super::soap::quoted(name);
    match name {
        "NotAuthenticated" => FaultKind::NotAuthenticated,
        "InvalidLogin" => FaultKind::InvalidLogin,
        "NoPermission" => FaultKind::NoPermission {
            privilege: super::soap::quoted(privilege(detail)),
            object: detail.moref_at("object"),
        },
        "ManagedObjectNotFound" => {
            FaultKind::ManagedObjectNotFound { object: detail.moref_at("obj") }
        }
        "MethodNotFound" => FaultKind::MethodNotFound,
        "NotSupported"
        | "NotImplemented"
        | "NotEnoughLicenses"
        | "RestrictedVersion"
        | "RestrictedByAdministrator"
        | "HostIncompatibleForRecordReplay" => FaultKind::NotSupported { fault: fault() },
        "InvalidArgument" | "InvalidRequest" | "InvalidProperty" | "InvalidName"
        | "InvalidDeviceSpec" | "InvalidVmConfig" => FaultKind::InvalidArgument {
            property: detail
                .text_at("invalidProperty")
                .or(detail.text_at("name"))
                .map_or_else(fault, super::soap::quoted),
        },
        "TaskInProgress" => FaultKind::TaskInProgress,
        "ConcurrentAccess"
        | "ResourceInUse"
        | "ServerBusy"
        | "TooManyConcurrentNativeClones"
        | "SnapshotLocked"
        | "LimitExceeded" => FaultKind::Busy { fault: fault() },
        "HostCommunication"
        | "HostNotConnected"
        | "HostNotReachable"
        | "HostConnectFault"
        | "HostUnreachable"
        | "Timedout"
        | "HostCommunicationFault" => FaultKind::HostUnreachable { fault: fault() },
        "RequestCanceled" => FaultKind::RequestCanceled,
        "InvalidCollectorVersion" => FaultKind::InvalidCollectorVersion,
        "SnapshotFault"
        | "ApplicationQuiesceFault"
        | "FilesystemQuiesceFault"
        | "MemorySnapshotOnIndependentDisk"
        | "MultipleSnapshotsNotSupported"
        | "SnapshotDisabled"
        | "SnapshotIncompatibleDeviceInVm"
        | "SnapshotNoChange"
        | "TooManySnapshotLevels"
        | "ApproximateSnapshot"
        | "SnapshotCopyNotSupported" => FaultKind::SnapshotFault { fault: fault() },
        _ if detail.child("file").is_some() || name.starts_with("File") => FaultKind::FileFault {
            fault: fault(),
            file: super::soap::quoted(detail.text_at("file").unwrap_or_default()),
        },
        _ if name.starts_with("Invalid") && name.ends_with("State") => {
            FaultKind::InvalidState { fault: fault() }
        }
        "InvalidState" | "QuestionPending" | "VmConfigFault" => {
            FaultKind::InvalidState { fault: fault() }
        }
        _ => FaultKind::Other { fault: fault() },
    }
}

/// Older services name one privilege, newer ones list several for each object.
fn privilege(detail: &Element) -> &str {
    let listed = detail.at("missingPrivileges.privilegeIds");
    let listed = listed.map(|element| &*element.text).filter(|text| !text.is_empty());
    detail.text_at("privilegeId").or(listed).unwrap_or("unknown privilege")
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FaultKind::NotAuthenticated => f.write_str("NotAuthenticated")?,
            FaultKind::InvalidLogin => {
                f.write_str("InvalidLogin: user name or password are wrong")?;
            }
            FaultKind::NoPermission { privilege, object } => {
                write!(f, "NoPermission: the user lacks the privilege {privilege}")?;
                if let Some(object) = object {
                    write!(f, " on {object}")?;
                }
            }
            FaultKind::FileFault { fault, file } => write!(f, "{fault}: file '{file}'")?,
            FaultKind::ManagedObjectNotFound { object } => {
                f.write_str("ManagedObjectNotFound")?;
                if let Some(object) = object {
                    write!(f, ": {object} is gone, or belongs to another endpoint")?;
                }
            }
            FaultKind::MethodNotFound => f.write_str("MethodNotFound")?,
            FaultKind::InvalidArgument { property } => write!(f, "InvalidArgument: {property}")?,
            FaultKind::TaskInProgress => f.write_str("TaskInProgress")?,
            FaultKind::RequestCanceled => f.write_str("RequestCanceled")?,
            FaultKind::InvalidCollectorVersion => f.write_str("InvalidCollectorVersion")?,
            FaultKind::InvalidState { fault }
            | FaultKind::NotSupported { fault }
            | FaultKind::Busy { fault }
            | FaultKind::HostUnreachable { fault }
            | FaultKind::SnapshotFault { fault }
            | FaultKind::Other { fault } => f.write_str(fault)?,
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, FaultKind};
    use crate::vcenter::xml;

    fn read(text: &str) -> Fault {
        let text = format!("<d xmlns:xsi=\"x\">{text}</d>");
        let root = xml::parse(text.as_bytes()).expect("XML");
        Fault::parse(&root.children[0], "said")
    }

    #[test]
    fn faults_are_told_apart_by_type_or_by_name() {
        let fault = read("<NotAuthenticatedFault xsi:type=\"NotAuthenticated\"/>");
        assert_eq!(fault.kind, FaultKind::NotAuthenticated);
        assert_eq!(read("<InvalidLoginFault/>").kind, FaultKind::InvalidLogin);
        let fault = read(
            "<Fault xsi:type=\"NoPermission\"><object type=\"VirtualMachine\">vm-1</object>\
             <privilegeId>VirtualMachine.State.CreateSnapshot</privilegeId></Fault>",
        );
        let text = fault.to_string();
        assert!(text.contains("CreateSnapshot") && text.contains("vm-1"), "{text}");
        let fault = read("<Fault xsi:type=\"FileLocked\"><file>[ds] a/a.vmdk</file></Fault>");
        assert!(
            matches!(fault.kind, FaultKind::FileFault { ref file, .. } if file == "[ds] a/a.vmdk")
        );
        let fault = read("<Fault xsi:type=\"InvalidPowerState\"/>");
        assert!(matches!(fault.kind, FaultKind::InvalidState { .. }) && !fault.is_transient());
        assert!(read("<Fault xsi:type=\"TaskInProgress\"/>").is_transient());
        assert!(matches!(read("<X xsi:type=\"Strange\"/>").kind, FaultKind::Other { .. }));
    }
}
