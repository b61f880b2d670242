//! What a restore will do, as it is written down before it is done. Pure.
//!
//! In: a request, a point, the point's configuration, proxies' facts. Out: a [`Plan`] with the names of
//! tasks, files and of the machine, so that a gantryd that was interrupted takes the same up again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_api::views::RestoreRequest;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::TaskId;
use gantry_common::transport_mode::TransportMode;
use gantry_common::wire::{DiskSummary, PointSummary};
use gantry_common::work::{DiskRestore, RestoreTo};
use gantry_database::model::Id;
use serde::{Deserialize, Serialize};

use crate::broker::{Target, VmConfig, VmSpec};
use crate::run::{failed, now_ms};
use crate::transport::ProxyFacts;
use crate::vcenter::datastore_file::flat_name;

/// Bytes of a machine's name in a file's name.
const FILE_NAME_BYTES_MAX: usize = 100;
/// A disk of vSphere has whole sectors.
pub(super) const SECTOR_BYTES: u64 = 512;

/// What will be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) repository: Id,
    /// Name under which the points are kept.
    pub(super) name: String,
    pub(super) point: String,
    /// Name of the proxy.
    pub(super) proxy: String,
    pub(super) disks: Vec<Planned>,
    /// The machine that is made; nothing: files only.
    #[serde(default)]
    pub(super) machine: Option<Machine>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Planned {
    pub(super) task: TaskId,
    /// Position in the point.
    pub(super) disk: u16,
    pub(super) identity: String,
    pub(super) label: String,
    pub(super) size_bytes: u64,
    /// Where it goes; of a disk that is attached to the proxy it is known once the machine is made.
    pub(super) to: Option<RestoreTo>,
    /// Of a machine: the disk's key in the point's configuration, its datastore path.
    #[serde(default)]
    pub(super) device: Option<(i32, String)>,
}

/// A machine that is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) vcenter: Id,
    pub(super) name: String,
    /// Instance UUID.
    pub(super) uuid: String,
    pub(super) keep_identity: bool,
    /// `[datastore] folder` of its files, of this restore alone.
    pub(super) folder: String,
    pub(super) target: Target,
    pub(super) networks: BTreeMap<String, String>,
    pub(super) power_on: bool,
    pub(super) road: Road,
    /// Why that road.
    pub(super) why: String,
}

/// How its disks are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Road {
    /// As files of the datastore, which is mounted on the proxy here.
    Direct(PathBuf),
    /// Attached to the proxy, which is this machine (instance UUID).
    Hotadd { proxy_vm: String, device_folder: Option<PathBuf> },
}

impl Planned {
    /// The task in whose place another stands that was never begun, or died with an earlier gantryd.
    pub(super) fn second(&self) -> TaskId {
        let mut task = self.task;
        task.0[TaskId::BYTES - 1] ^= 1;
        task
    }

    /// What the mover is told.
    pub(super) fn work(&self, to: RestoreTo) -> DiskRestore {
        let Planned { disk, identity, label, .. } = self.clone();
        DiskRestore { disk, identity, label, to }
    }
}

fn usage(text: String) -> Failure {
    failed(FailureKind::Usage, text)
}

/// The point that is asked for, or the newest.
pub(super) fn choose_point(
    points: Vec<PointSummary>,
    request: &RestoreRequest,
) -> Result<PointSummary, Failure> {
    let wanted = |point: &PointSummary| match &request.point {
        Some(id) => point.point.to_string() == *id,
        None => true,
    };
    let found = points.into_iter().filter(wanted).max_by_key(|point| point.created_ms);
    found.ok_or_else(|| {
        let which = request.point.as_deref().unwrap_or("any");
        usage(format!("the repository has no such point of '{}' ({which})", request.name))
    })
}

/// The disks that are asked for, with their positions in the point.
fn wanted<'a>(
    request: &RestoreRequest,
    point: &'a PointSummary,
) -> Result<Vec<(u16, &'a DiskSummary)>, Failure> {
    let is_it =
        |wanted: &String, disk: &DiskSummary| *wanted == disk.label || *wanted == disk.identity;
    let known = |wanted: &&String| point.disks.iter().any(|disk| is_it(wanted, disk));
    if let Some(missing) = request.disks.iter().find(|wanted| !known(wanted)) {
        let labels: Vec<&str> = point.disks.iter().map(|disk| disk.label.as_str()).collect();
        let text = format!("the point has no disk '{missing}': it has {}", labels.join(", "));
        return Err(usage(text));
    }
    let is_wanted = |disk: &DiskSummary| {
        request.disks.is_empty() || request.disks.iter().any(|wanted| is_it(wanted, disk))
    };
    let disks: Vec<_> = (0..).zip(&point.disks).filter(|(_, disk)| is_wanted(disk)).collect();
    match disks.is_empty() {
        true => Err(usage("the point has no disks".to_owned())),
        false => Ok(disks),
    }
}

fn planned(
    number: u16,
    disk: &DiskSummary,
    to: Option<RestoreTo>,
    device: Option<(i32, String)>,
) -> Planned {
    Planned {
        task: TaskId(Id::draw(now_ms()).0),
        disk: number,
        identity: disk.identity.clone(),
        label: disk.label.clone(),
        size_bytes: disk.size_bytes,
        to,
        device,
    }
}

/// Which disks go into which files.
///
/// # Errors
/// `Usage`: a disk that is asked for is not there.
pub(super) fn to_files(
    request: &RestoreRequest,
    point: &PointSummary,
    proxy: String,
    folder: &Path,
) -> Result<Plan, Failure> {
    let file = |number| RestoreTo::File(file_of(folder, &request.name, number));
    let disks = wanted(request, point)?;
    let disks =
        disks.iter().map(|(number, disk)| planned(*number, disk, Some(file(*number)), None));
    Ok(of(request, point, proxy, disks.collect(), None))
}

fn of(
    request: &RestoreRequest,
    point: &PointSummary,
    proxy: String,
    disks: Vec<Planned>,
    machine: Option<Machine>,
) -> Plan {
    let (repository, name, point) =
        (request.repository, request.name.clone(), point.point.to_string());
    Plan { repository, name, point, proxy, disks, machine }
}

/// Name of a disk's file: of the machine and the disk's position in the point.
pub(super) fn file_of(folder: &Path, name: &str, disk: u16) -> PathBuf {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let name: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    let name = &name[..name.len().min(FILE_NAME_BYTES_MAX)];
    folder.join(format!("{}-disk{disk}.raw", name.trim_end_matches('_')))
}

/// Which disks go into which files of the machine.
///
/// # Errors
/// `Usage`: a disk is not there, or is not in the configuration.
pub(super) fn to_machine(
    request: &RestoreRequest,
    point: &PointSummary,
    config: &VmConfig,
    proxy: String,
    machine: Machine,
) -> Result<Plan, Failure> {
    let mut disks = Vec::new();
    for (number, disk) in wanted(request, point)? {
        let key = key_of(config, &disk.identity).ok_or_else(|| {
            let text =
                "is not in the machine's configuration that the point keeps: restore it to a file";
            usage(format!("disk {} {text}", disk.label))
        })?;
        if !disk.size_bytes.is_multiple_of(SECTOR_BYTES) {
            let text =
                "has no whole sectors, and cannot be a disk of vSphere: restore it to a file";
            return Err(usage(format!("disk {} {text}", disk.label)));
        }
        let file = VmSpec::disk_file(&machine.folder, &machine.name, disks.len());
        let to = match &machine.road {
            Road::Direct(mount) => Some(RestoreTo::File(mounted(mount, &flat_name(&file))?)),
            Road::Hotadd { .. } => None,
        };
        disks.push(planned(number, disk, to, Some((key, file))));
    }
    Ok(of(request, point, proxy, disks, Some(machine)))
}

/// `[ds] folder/file` below the folder where the datastore is mounted.
fn mounted(mount: &Path, file: &str) -> Result<PathBuf, Failure> {
    let relative = file.split_once("] ").map(|(_, path)| path);
    let relative = relative.ok_or_else(|| usage(format!("'{file}' is no path of a datastore")))?;
    Ok(mount.join(relative))
}

/// The key of a point's disk in the configuration. An identity is vCenter, machine, and the UUID or
/// base file of the disk: [`crate::run::prepare::identity`].
fn key_of(config: &VmConfig, identity: &str) -> Option<i32> {
    let own = identity.splitn(3, '/').nth(2)?;
    let is_it = |uuid: &str, file: &str| match uuid.is_empty() {
        true => file == own,
        false => uuid == own,
    };
    config.disks.iter().find(|disk| is_it(&disk.uuid, &disk.file)).map(|disk| disk.key)
}

/// How a proxy can write new disks to a datastore, and why; or why it cannot. `has_ide`: a disk is on
/// an IDE controller.
pub(super) fn road(
    facts: &ProxyFacts,
    reached: bool,
    datastore: &str,
    has_ide: bool,
) -> Result<(Road, String), String> {
    let may = |mode| facts.modes.is_empty() || facts.modes.contains(&mode);
    let mount = facts.mounts.get(datastore).filter(|_| may(TransportMode::Direct));
    if let Some(mount) = mount {
        let why = format!("datastore {datastore} is mounted on it at {}", mount.display());
        return Ok((Road::Direct(mount.clone()), why));
    }
    let Some(vm) = facts.vm.as_ref().filter(|_| may(TransportMode::Hotadd)) else {
        let text =
            "is not mounted on it, and it is no virtual machine that disks can be attached to";
        return Err(format!("datastore {datastore} {text}"));
    };
    if !reached {
        return Err(format!("its machine's host does not reach datastore {datastore}"));
    }
    if has_ide {
        let text = "disks of an IDE controller cannot be attached to a running machine";
        return Err(format!("{text}, and datastore {datastore} is not mounted on it"));
    }
    let (proxy_vm, device_folder) = (vm.instance_uuid.clone(), vm.device_folder.clone());
    let why = format!("the new disks are attached to it: its host reaches datastore {datastore}");
    Ok((Road::Hotadd { proxy_vm, device_folder }, why))
}

/// The descriptor of a flat disk: "VMware Virtual Disk Format 5.0", one VMFS extent. Its adapter is what
/// the host believes, not what the guest sees.
pub(super) fn descriptor(size_bytes: u64, flat_file: &str, is_ide: bool, random: u128) -> String {
    let sectors = size_bytes / SECTOR_BYTES;
    let (adapter, heads, per_track) = if is_ide { ("ide", 16, 63) } else { ("lsilogic", 255, 63) };
    let cylinders = (sectors / (heads * per_track)).clamp(1, 65_535);
    // Never the two values that stand for "none" and "any".
    let content_id = ((random >> 96) as u32).clamp(1, 0xffff_fffd);
    // 6000C29 is VMware's part of the NAA identifier; two halves of eight bytes.
    let mut uuid = random.to_be_bytes();
    let own = uuid[3] & 0xf;
    uuid[..4].copy_from_slice(&[0x60, 0x00, 0xc2, 0x90 | own]);
    let half = |bytes: &[u8]| {
        let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.join(" ")
    };
    let uuid = format!("{}-{}", half(&uuid[..8]), half(&uuid[8..]));
    format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID={content_id:08x}\n\
         parentCID=ffffffff\ncreateType=\"vmfs\"\n\n# Extent description\n\
         RW {sectors} VMFS \"{flat_file}\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"{adapter}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"{per_track}\"\n\
         ddb.thinProvisioned = \"1\"\nddb.uuid = \"{uuid}\"\n\
         ddb.virtualHWVersion = \"14\"\n"
    )
}

#[cfg(test)]
mod tests;
