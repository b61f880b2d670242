//! What backups are made of and with: vCenters, proxies, repositories.
//!
//! Plain data. A proxy and a repository name their mover by its pin.

use std::collections::BTreeMap;

use gantry_common::ids::{PeerId, RepositoryId};
use gantry_common::limits;
use gantry_common::source::ServerTrust;
use gantry_common::transport_mode::TransportMode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{self, Invalid, invalid};
use super::{Id, SecretSlot, schema, text};

/// Task slots of a proxy for each core, unless it says otherwise.
const PROXY_SLOTS_PER_CORE: u32 = 2;
/// Task slots of a repository, unless it says otherwise.
const REPOSITORY_SLOTS: u32 = 4;
const SLOTS_MAX: u32 = 1024;
/// Bytes of authorities' certificates (PEM).
const PEM_BYTES_MAX: usize = 64 << 10;

/// A vCenter or ESXi host. Its password stands at [`VCenter::password`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VCenter {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// What people call it; unique.
    pub name: String,
    /// `https://HOST[:PORT]`.
    #[schema(example = "https://vcenter.example")]
    pub url: String,
    /// As whom to log in.
    pub user: String,
    /// Whose certificate it may show.
    #[schema(value_type = schema::ServerTrustSchema)]
    pub trust: ServerTrust,
}

impl VCenter {
    /// Where its password is kept.
    pub fn password(&self) -> SecretSlot {
        SecretSlot::VCenterPassword(self.id)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        check::filled("user", &self.user, limits::NAME_BYTES_MAX)?;
        check::line("url", &self.url, limits::PATH_BYTES_MAX)?;
        let host = self.url.strip_prefix("https://").unwrap_or_default();
        if host.is_empty() || host.contains(['@', '?', '#', ' ']) {
            return Err(invalid("url", "is no address; give https://HOST or https://HOST:PORT"));
        }
        match &self.trust {
            ServerTrust::Thumbprint(digits) => thumbprint("trust.thumbprint", digits),
            ServerTrust::CaPem(pem) if pem.len() > PEM_BYTES_MAX => {
                Err(invalid("trust.ca_pem", format!("give at most {PEM_BYTES_MAX} bytes")))
            }
            ServerTrust::CaPem(pem) if !pem.contains("-----BEGIN CERTIFICATE-----") => {
                Err(invalid("trust.ca_pem", "holds no certificate; give PEM text"))
            }
            ServerTrust::CaPem(_) => Ok(()),
        }
    }
}

fn thumbprint(field: &str, text: &str) -> Result<(), Invalid> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let whole = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match whole && (text.len() == 64 || text.len() == 95) {
        true => Ok(()),
        false => Err(invalid(field, "is no SHA-256 digest; give its 64 hexadecimal digits")),
    }
}

/// A host that reads disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// What people call it; unique.
    pub name: String,
    /// Its mover's pin.
    #[serde(with = "text")]
    #[schema(value_type = String)]
    pub mover: PeerId,
    /// Whether it is given tasks.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Disks that it reads at a time; nothing: two for each core.
    #[serde(default)]
    pub task_slots: Option<u32>,
    /// Datastores that are mounted on it (name in vCenter → folder), beside those that its mover's
    /// own configuration tells.
    #[serde(default)]
    pub mounts: BTreeMap<String, String>,
    /// Instance UUID of the virtual machine that it is, if it is one: for hot-add.
    #[serde(default)]
    pub vm_instance_uuid: Option<String>,
    /// Folder in which attached disks appear under names with their UUID; nothing: as usual.
    #[serde(default)]
    pub device_folder: Option<String>,
    /// Address of an NBD server for a disk; `{vm}`, `{disk_uuid}`, `{datastore}` and `{file}` are
    /// filled in.
    #[serde(default)]
    pub nbd_template: Option<String>,
    /// Transport modes that it may use; none: all that it can.
    #[serde(default)]
    #[schema(value_type = Vec<schema::TransportModeSchema>)]
    pub modes: Vec<TransportMode>,
    /// Milliseconds since 1970.
    #[serde(default)]
    pub created_ms: u64,
}

impl Proxy {
    /// Disks that it reads at a time, on a host with so many cores.
    pub fn slots(&self, cores: u32) -> u32 {
        self.task_slots.unwrap_or(cores.max(1).saturating_mul(PROXY_SLOTS_PER_CORE))
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        check::bytes("created_ms", self.created_ms)?;
        if let Some(slots) = self.task_slots {
            check::range("task_slots", slots, 1, SLOTS_MAX)?;
        }
        check::count("mounts", self.mounts.len())?;
        for (datastore, folder) in &self.mounts {
            check::filled("mounts", datastore, limits::NAME_BYTES_MAX)?;
            check::path(&format!("mounts.{datastore}"), folder)?;
        }
        if let Some(uuid) = &self.vm_instance_uuid
            && gantry_common::source::uuid_digits(uuid).is_none()
        {
            let what = "is no UUID; give 32 hexadecimal digits, with or without dashes";
            return Err(invalid("vm_instance_uuid", what));
        }
        if let Some(folder) = &self.device_folder {
            check::path("device_folder", folder)?;
        }
        if let Some(template) = &self.nbd_template {
            check::line("nbd_template", template, limits::PATH_BYTES_MAX)?;
            if !template.starts_with("nbd") {
                return Err(invalid(
                    "nbd_template",
                    "is no NBD address; give nbd://HOST:PORT/{vm}",
                ));
            }
        }
        check::distinct("modes", &self.modes)
    }
}

/// A mover that keeps backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Its id as a record.
    #[schema(value_type = String)]
    pub id: Id,
    /// What people call it; unique.
    pub name: String,
    /// Its mover's pin.
    #[serde(with = "text")]
    #[schema(value_type = String)]
    pub mover: PeerId,
    /// Where proxies reach it: `gantry://HOST:PORT`.
    #[schema(example = "gantry://repository.example:9440")]
    pub address: String,
    /// The repository's own id, drawn when it was made.
    #[serde(with = "text")]
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// Disks that it takes at a time.
    #[serde(default = "repository_slots")]
    pub task_slots: u32,
    /// Limit of what it takes, over all sessions; nothing: unlimited.
    #[serde(default)]
    pub rate_bytes_per_second: Option<u64>,
    /// No session begins with less free than this.
    #[serde(default = "free_default")]
    pub free_bytes_min: u64,
}

impl Repository {
    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    pub fn validate(&self) -> Result<(), Invalid> {
        check::name("name", &self.name)?;
        check::range("task_slots", self.task_slots, 1, SLOTS_MAX)?;
        check::rate("rate_bytes_per_second", self.rate_bytes_per_second)?;
        check::bytes("free_bytes_min", self.free_bytes_min)?;
        check::line("address", &self.address, limits::NAME_BYTES_MAX)?;
        let place = self.address.strip_prefix("gantry://").and_then(|place| place.rsplit_once(':'));
        match place {
            Some((host, port))
                if !host.is_empty()
                    && !host.contains(['/', '@', ' '])
                    && port.parse::<u16>().is_ok_and(|port| port > 0) =>
            {
                Ok(())
            }
            _ => Err(invalid("address", "is no repository's address; give gantry://HOST:PORT")),
        }
    }
}

fn yes() -> bool {
    true
}

fn repository_slots() -> u32 {
    REPOSITORY_SLOTS
}

fn free_default() -> u64 {
    10 << 30
}
