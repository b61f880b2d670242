//! What is done in a guest around its snapshot.
//!
//! Plain data; credentials are named by their id, never held.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Id;
use super::check::{self, Invalid, invalid};

/// Seconds that a script may take unless it is told otherwise.
const SCRIPT_SECONDS: u32 = 600;
/// And at the most.
const SCRIPT_SECONDS_MAX: u32 = 24 * 3600;
/// Bytes of a script that gantryd holds.
const SCRIPT_BYTES_MAX: usize = 256 << 10;

/// Whether VMware Tools quiesce the guest for the snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quiesce {
    /// No: the point is crash-consistent.
    #[default]
    Off,
    /// Yes; if it fails, the machine's backup fails.
    On,
    /// Yes; if it fails, a crash-consistent snapshot is made, with a warning.
    FallBack,
}

/// What a failure in the guest means for the machine's backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApplicationPolicy {
    /// Guest steps must succeed, or the backup fails.
    #[default]
    Success,
    /// Guest steps may fail: the backup goes on with a warning.
    Ignore,
    /// No guest steps are taken.
    Disabled,
}

/// Guest steps of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApplicationSettings {
    /// Whether guest steps are taken at all.
    pub enabled: bool,
    /// What their failure means.
    pub policy: ApplicationPolicy,
    /// Before the snapshot.
    pub pre_freeze: Option<GuestScript>,
    /// After it.
    pub post_thaw: Option<GuestScript>,
    /// After a point was committed, and never else: where logs are cut.
    pub after_success: Option<GuestScript>,
    /// As whom to log in to guests, unless `vm_credentials` says otherwise.
    #[schema(value_type = Option<String>)]
    pub credential: Option<Id>,
    /// The first whose pattern matches the machine's name.
    pub vm_credentials: Vec<VmCredential>,
}

/// A credential for some machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCredential {
    /// Pattern of machines' names.
    pub vm: String,
    /// As whom.
    #[schema(value_type = String)]
    pub credential: Id,
}

/// A script or program in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestScript {
    /// Where it comes from.
    pub source: ScriptSource,
    /// Its arguments.
    #[serde(default)]
    pub arguments: String,
    /// Seconds that it may take.
    #[serde(default = "script_seconds")]
    pub timeout_seconds: u32,
}

/// Where a script comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScriptSource {
    /// Its text is copied into the guest, run, and removed.
    Upload {
        /// For Linux guests.
        #[serde(default)]
        linux: Option<String>,
        /// For Windows guests.
        #[serde(default)]
        windows: Option<String>,
    },
    /// It is in the guest already.
    Installed {
        /// Its path there.
        path: String,
    },
}

fn script_seconds() -> u32 {
    SCRIPT_SECONDS
}

impl ApplicationSettings {
    /// Every credential that is named.
    pub fn credentials(&self) -> impl Iterator<Item = Id> + '_ {
        self.credential.into_iter().chain(self.vm_credentials.iter().map(|each| each.credential))
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        let scripts = [
            ("pre_freeze", &self.pre_freeze),
            ("post_thaw", &self.post_thaw),
            ("after_success", &self.after_success),
        ];
        for (field, script) in scripts {
            script.iter().try_for_each(|script| check::within(field, script.validate()))?;
        }
        check::count("vm_credentials", self.vm_credentials.len())?;
        for (at, each) in self.vm_credentials.iter().enumerate() {
            check::filled(&format!("vm_credentials[{at}].vm"), &each.vm, check::NAME_MAX)?;
        }
        let works = scripts.iter().any(|(_, script)| script.is_some());
        if self.enabled && works && self.credentials().next().is_none() {
            let what = "is missing: scripts run as somebody; name a credential";
            return Err(invalid("credential", what));
        }
        Ok(())
    }
}

impl GuestScript {
    fn validate(&self) -> Result<(), Invalid> {
        check::line("arguments", &self.arguments, 4096)?;
        check::range("timeout_seconds", self.timeout_seconds, 1, SCRIPT_SECONDS_MAX)?;
        match &self.source {
            ScriptSource::Installed { path } => check::filled("source.path", path, 1024),
            ScriptSource::Upload { linux: None, windows: None } => {
                Err(invalid("source", "has no text; give one for linux or windows"))
            }
            ScriptSource::Upload { linux, windows } => {
                let longest = linux.iter().chain(windows).map(String::len).max().unwrap_or(0);
                check::range("source (bytes of the text)", longest, 1, SCRIPT_BYTES_MAX)
            }
        }
    }
}
