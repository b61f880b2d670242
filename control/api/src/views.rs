//! What the API takes and shows beside the records of `gantry-database`.
//!
//! Plain data. Invariant: what is shown holds no secret, except the two answers that show a token
//! once, when it is made; they are no `Debug`.

use std::collections::BTreeMap;

use gantry_common::enrolment::{ENROLMENT_BYTES_MAX, EnrolReply};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::call::Checked;
use crate::limits;
use crate::model::{
    EnrolmentRecord, EventRecord, Id, Invalid, MoverRecord, MoverRole, Role, SessionState,
    TaskRecord, TokenRecord, VmRunRecord,
};

/// Years that a token may hold at most.
const TOKEN_MS_MAX: u64 = 10 * 366 * 24 * 3600 * 1000;
/// Seconds that an enrolment holds at most, and unless it says otherwise.
const ENROLMENT_SECONDS_MAX: u64 = 7 * 24 * 3600;
const ENROLMENT_SECONDS: u64 = 24 * 3600;

fn invalid(field: &str, what: impl Into<String>) -> Invalid {
    Invalid { field: field.to_owned(), what: what.into() }
}

fn name(field: &str, text: &str) -> Result<(), Invalid> {
    line(field, text, limits::NAME_BYTES_MAX)?;
    match text.trim().is_empty() || text.trim() != text {
        true => Err(invalid(field, "is empty or has blanks around it; give a name")),
        false => Ok(()),
    }
}

fn line(field: &str, text: &str, max: usize) -> Result<(), Invalid> {
    if text.len() > max {
        return Err(invalid(field, format!("is too long; give at most {max} bytes")));
    }
    match text.chars().any(char::is_control) {
        true => Err(invalid(field, "has a control character; remove it")),
        false => Ok(()),
    }
}

fn list(field: &str, entries: &[String]) -> Result<(), Invalid> {
    if entries.len() > limits::LIST_MAX {
        return Err(invalid(field, format!("is too long; give at most {}", limits::LIST_MAX)));
    }
    entries.iter().try_for_each(|entry| name(field, entry))
}

/// What a vCenter answered to a log-in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionTest {
    /// Product, version and build.
    pub product: String,
    /// Version of its API.
    pub api_version: String,
    /// Its instance UUID; an ESXi host has none.
    pub instance_uuid: Option<String>,
    /// Privileges that a backup uses and that are missing.
    pub privileges_missing: Vec<String>,
    /// For a person.
    pub notes: Vec<String>,
}

/// A virtual machine of a vCenter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InventoryVm {
    /// Its name.
    pub name: String,
    /// Its instance UUID.
    pub instance_uuid: Option<String>,
    /// Its folder's path.
    pub folder: String,
    /// Whether it runs, as vSphere says it.
    pub power: String,
    /// Whether it is a template.
    pub template: bool,
    /// Whether changed-block tracking is on.
    pub cbt: bool,
    /// Its disks.
    pub disks: Vec<InventoryDisk>,
}

/// A disk of such a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InventoryDisk {
    /// Its label.
    pub label: String,
    /// Its size.
    pub capacity_bytes: u64,
    /// `[datastore] path`.
    pub file: String,
    /// Why it cannot be backed up.
    pub refused: Option<String>,
}

/// A mover that has enrolled, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoverState {
    /// As it enrolled.
    pub mover: MoverRecord,
    /// Connected since then, milliseconds since 1970.
    pub connected_since_ms: Option<u64>,
    /// Its program's name and version.
    pub software: String,
    /// Name of its host.
    pub host: String,
    /// Cores that it uses.
    pub cores: u32,
    /// Tasks that it carries out.
    pub tasks_running: u64,
    /// Why its last connection was refused.
    pub refused: Option<String>,
    /// The repository that it serves.
    pub repository: Option<ServedRepository>,
}

/// A repository as its mover serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServedRepository {
    /// Its id, 32 hexadecimal digits: what a repository's record names it by.
    pub id: String,
    /// Port on which movers reach it.
    pub port: u16,
    /// Its folder.
    pub path: String,
    /// Bytes of its file system.
    pub capacity_bytes: u64,
    /// Free ones.
    pub free_bytes: u64,
}

/// What a repository holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepositoryStat {
    /// Bytes of its file system.
    pub capacity_bytes: u64,
    /// Free ones.
    pub free_bytes: u64,
    /// All that `gantry-mover repo stat --json` tells.
    #[schema(value_type = Object)]
    pub report: Value,
}

/// How to verify a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyRequest {
    /// Share of the stored bytes to read; oldest-checked packs first.
    #[schema(minimum = 1, maximum = 100)]
    pub percent: u8,
    /// Stored checksums only, without decoding.
    pub checksums_only: bool,
    /// Bytes of packs to read a second; nothing: unlimited.
    #[schema(minimum = 1)]
    pub rate_bytes_per_second: Option<u64>,
}

impl Default for VerifyRequest {
    fn default() -> VerifyRequest {
        VerifyRequest { percent: 100, checksums_only: false, rate_bytes_per_second: None }
    }
}

impl Checked for VerifyRequest {
    fn check(&self) -> Result<(), Invalid> {
        if !(1..=100).contains(&self.percent) {
            return Err(invalid("percent", "is out of range; give 1 to 100"));
        }
        match self.rate_bytes_per_second {
            Some(0) => Err(invalid("rate_bytes_per_second", "is 0; leave it out for no limit")),
            _ => Ok(()),
        }
    }
}

/// How to give back what no restore point needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CollectRequest {
    /// Only say what would be given back.
    pub dry_run: bool,
    /// Bytes of live records that may be copied to empty mostly dead packs; nothing: a tenth.
    pub rewrite_bytes_max: Option<u64>,
    /// Also give up progress of interrupted backups; they then start over.
    pub abandon_unfinished: bool,
}

impl Checked for CollectRequest {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// How to start a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StartRequest {
    /// Read everything that is allocated, whatever changed.
    pub full: bool,
    /// Only these of the job's machines; none: all.
    pub vms: Vec<String>,
}

impl Checked for StartRequest {
    fn check(&self) -> Result<(), Invalid> {
        list("vms", &self.vms)
    }
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// At once; what is durable stays and is not sent again.
    Now,
    /// After the machines that are being backed up.
    Graceful,
}

/// How to stop a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// How.
    pub mode: StopMode,
}

impl Checked for StopRequest {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// Whether a job's schedule starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnableRequest {
    /// Whether it does.
    pub enabled: bool,
}

impl Checked for EnableRequest {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A machine of a session, with its disks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmRun {
    /// The machine.
    pub run: VmRunRecord,
    /// Its disks.
    pub tasks: Vec<TaskRecord>,
}

/// A session's live numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Whether it goes on.
    pub state: SessionState,
    /// Bytes processed a second, over the last seconds.
    pub bytes_per_second: u64,
    /// Seconds to its end, as far as can be told.
    pub eta_seconds: Option<u64>,
    /// What holds it up: `source`, `proxy`, `network` or `target`.
    pub bottleneck: Option<String>,
    /// Its disks that run, wait or have run.
    pub disks: Vec<TaskProgress>,
}

/// Live numbers of a disk, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskProgress {
    /// The task.
    #[schema(value_type = String)]
    pub task: Id,
    /// The machine's name.
    pub vm: String,
    /// The disk's label.
    pub disk: String,
    /// The task's state.
    pub state: String,
    /// The proxy's name.
    pub proxy: Option<String>,
    /// The transport mode.
    pub mode: Option<String>,
    /// Done of what must be read.
    pub done_bytes: u64,
    /// What must be read, as far as is known.
    pub todo_bytes: u64,
    /// Read from the source.
    pub read_bytes: u64,
    /// Sent, compressed.
    pub transferred_bytes: u64,
}

/// Something told of a session, with its number in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumberedEvent {
    /// Its number: rises within a session, from 1.
    pub number: u64,
    /// What was told.
    pub event: EventRecord,
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// Its repository.
    #[schema(value_type = String)]
    pub repository: Id,
    /// The name under which the machine's points are kept.
    pub name: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Its base, if it had one.
    pub parent: Option<String>,
    /// `protected`, `weekly`, `monthly`, `yearly`.
    pub flags: Vec<String>,
    /// It is deleted; it can be brought back until a collection.
    pub deleted: bool,
    /// Its disks.
    pub disks: Vec<PointDisk>,
}

/// A disk of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PointDisk {
    /// Its label.
    pub label: String,
    /// Its identity.
    pub identity: String,
    /// Its size.
    pub size_bytes: u64,
}

/// What is to be protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtectRequest {
    /// Whether it is.
    pub protected: bool,
}

impl Checked for ProtectRequest {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// What is to be restored, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// The repository.
    #[schema(value_type = String)]
    pub repository: Id,
    /// The name under which the machine's points are kept.
    pub name: String,
    /// The point, 32 hexadecimal digits; nothing: the newest.
    #[serde(default)]
    pub point: Option<String>,
    /// Labels of the disks; none: all.
    #[serde(default)]
    pub disks: Vec<String>,
    /// Where to.
    pub target: RestoreTarget,
}

/// Where a restore goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RestoreTarget {
    /// Raw image files, one for each disk, in a folder of a proxy.
    Files {
        /// The proxy.
        #[schema(value_type = String)]
        proxy: Id,
        /// The folder, an absolute path.
        folder: String,
    },
    /// A new machine, made as the point's configuration says.
    NewVm {
        /// The vCenter.
        #[schema(value_type = String)]
        vcenter: Id,
        /// Its name.
        name: String,
        /// Name of the datastore.
        datastore: String,
        /// Path of the folder: `/Datacenter/vm/Restored`; nothing: the datacenter's own.
        #[serde(default)]
        folder: Option<String>,
        /// Name of the host; nothing: one that reaches the datastore.
        #[serde(default)]
        host: Option<String>,
        /// Name of the cluster.
        #[serde(default)]
        cluster: Option<String>,
        /// Resource pool: its name, or its path below the cluster or host.
        #[serde(default)]
        pool: Option<String>,
        /// The proxy that writes the disks; nothing: one that reaches the datastore.
        #[serde(default)]
        #[schema(value_type = Option<String>)]
        proxy: Option<Id>,
        /// Whether it is to be the same machine, with its UUIDs and MAC addresses: the old one must be
        /// out of the inventory.
        #[serde(default)]
        keep_identity: bool,
        /// Networks of the configuration → networks to connect to; others stay disconnected.
        #[serde(default)]
        networks: BTreeMap<String, String>,
        /// Whether it is switched on.
        #[serde(default)]
        power_on: bool,
    },
}

impl Checked for RestoreRequest {
    fn check(&self) -> Result<(), Invalid> {
        name("name", &self.name)?;
        if let Some(point) = &self.point
            && point.parse::<gantry_common::ids::PointId>().is_err()
        {
            return Err(invalid("point", "is no restore point id; give 32 hexadecimal digits"));
        }
        list("disks", &self.disks)?;
        match &self.target {
            RestoreTarget::Files { folder, .. } => {
                line("target.folder", folder, limits::TEXT_BYTES_MAX)?;
                match folder.starts_with('/') && !folder.split('/').any(|part| part == "..") {
                    true => Ok(()),
                    false => Err(invalid("target.folder", "is no absolute path without '..'")),
                }
            }
            RestoreTarget::NewVm {
                name: new,
                folder,
                host,
                cluster,
                pool,
                datastore,
                networks,
                ..
            } => {
                name("target.name", new)?;
                name("target.datastore", datastore)?;
                let named = [("target.host", host), ("target.cluster", cluster)];
                for (field, given) in named {
                    given.as_ref().map_or(Ok(()), |given| name(field, given))?;
                }
                for (field, given) in [("target.folder", folder), ("target.pool", pool)] {
                    let fits = |given: &String| line(field, given, limits::TEXT_BYTES_MAX);
                    given.as_ref().map_or(Ok(()), fits)?;
                }
                if networks.len() > limits::LIST_MAX {
                    return Err(invalid("target.networks", "has too many entries"));
                }
                networks.iter().try_for_each(|(from, to)| {
                    name("target.networks", from).and_then(|()| name("target.networks", to))
                })
            }
        }
    }
}

/// An API token, without what could be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Id,
    /// Whose it is.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends; nothing: never.
    pub expires_ms: Option<u64>,
    /// When it was last used.
    pub last_used_ms: Option<u64>,
}

impl From<TokenRecord> for Token {
    fn from(record: TokenRecord) -> Token {
        let TokenRecord { id, name, role, created_ms, expires_ms, last_used_ms, hash: _ } = record;
        Token { id, name, role, created_ms, expires_ms, last_used_ms }
    }
}

/// A token that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Whose it will be.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// Milliseconds that it holds; nothing: until it is deleted.
    #[serde(default)]
    pub valid_ms: Option<u64>,
}

impl Checked for TokenRequest {
    fn check(&self) -> Result<(), Invalid> {
        name("name", &self.name)?;
        match self.valid_ms {
            Some(ms) if !(1..=TOKEN_MS_MAX).contains(&ms) => {
                Err(invalid("valid_ms", "is out of range; give at most ten years, or leave it out"))
            }
            _ => Ok(()),
        }
    }
}

/// A token that was made: its text is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    /// What is kept of it.
    pub token: Token,
    /// Its text.
    pub text: String,
}

/// A mover that is to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    /// The mover's name.
    pub mover: String,
    /// What it will be for.
    pub role: MoverRole,
    /// Seconds in which it must enrol.
    #[serde(default = "enrolment_seconds")]
    pub valid_seconds: u64,
}

fn enrolment_seconds() -> u64 {
    ENROLMENT_SECONDS
}

impl Checked for EnrolmentRequest {
    fn check(&self) -> Result<(), Invalid> {
        name("mover", &self.mover)?;
        match (1..=ENROLMENT_SECONDS_MAX).contains(&self.valid_seconds) {
            true => Ok(()),
            false => Err(invalid("valid_seconds", "is out of range; give 1 to 604800")),
        }
    }
}

/// An invitation of a mover, without what could be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enrolment {
    /// The mover's name.
    pub mover: String,
    /// What it will be for.
    pub role: MoverRole,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
    /// When it was used.
    pub used_ms: Option<u64>,
}

impl From<EnrolmentRecord> for Enrolment {
    fn from(record: EnrolmentRecord) -> Enrolment {
        let EnrolmentRecord { mover, role, created_ms, expires_ms, used_ms, hash: _ } = record;
        Enrolment { mover, role, created_ms, expires_ms, used_ms }
    }
}

/// An invitation that was made: its line is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnrolmentMade {
    /// What is kept of it.
    pub enrolment: Enrolment,
    /// The line to give to `gantry-mover enroll` on the mover's host.
    pub line: String,
}

/// A mover asks for its certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// Its name, as in the invitation.
    pub mover: String,
    /// The invitation's secret.
    #[schema(write_only)]
    pub secret: String,
    /// PEM of a PKCS #10 request.
    pub csr: String,
}

/// An enrolled mover asks for a newer certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// PEM of a PKCS #10 request, signed with the enrolled key.
    pub csr: String,
}

impl Checked for Enrol {
    const BYTES_MAX: usize = ENROLMENT_BYTES_MAX;

    fn check(&self) -> Result<(), Invalid> {
        name("mover", &self.mover)
    }
}

impl Checked for Renew {
    const BYTES_MAX: usize = ENROLMENT_BYTES_MAX;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A mover's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enrolled {
    /// PEM of the mover's certificate.
    pub certificate: String,
    /// PEM of the authority's certificate: whom the mover trusts.
    pub authority: String,
}

impl From<EnrolReply> for Enrolled {
    fn from(reply: EnrolReply) -> Enrolled {
        Enrolled { certificate: reply.certificate, authority: reply.authority }
    }
}

/// A JSON object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct Document(pub Value);

/// A setting's new value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingValue {
    /// Any JSON.
    pub value: Value,
}

impl Checked for SettingValue {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// Who asks, and what answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct About {
    /// gantryd's version.
    pub version: String,
    /// The name of the token that was sent.
    pub token: String,
    /// Its role.
    pub role: Option<Role>,
}
