//! Names of what is scheduled and of what does the work; they stand in reasons as they are.
//!
//! In: text from the caller, unique in its kind. Out: cheap clones with one order, so that ties are
//! always broken alike.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> $name {
                $name(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> $name {
                $name(text.into())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A proxy as it is configured.
    ProxyName
);
name!(
    /// A repository as it is configured.
    RepositoryName
);
name!(
    /// A datastore; unique over all vCenters that one scheduler serves.
    DatastoreName
);
name!(
    /// A job as it is configured.
    JobName
);
name!(
    /// One run of a job.
    SessionName
);
name!(
    /// A virtual machine; unique over all vCenters, the same in every session.
    VmName
);

/// The backup of one disk in one session; the caller numbers them and never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId(pub u64);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}", self.0)
    }
}

/// A machine's backup in one session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionVm {
    /// The run of the job.
    pub session: SessionName,
    /// The machine.
    pub vm: VmName,
}

impl fmt::Display for SessionVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.vm, self.session)
    }
}
