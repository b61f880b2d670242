//! What the broker knows of each object. Plain data; sizes in bytes.

use std::collections::BTreeMap;

use crate::vcenter::{MoRef, VmRef};

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmFacts {
    /// Its name.
    pub name: Box<str>,
    /// The folder it is in.
    pub parent: Option<MoRef>,
    /// vCenter's UUID of it, which identifies it for good.
    pub instance_uuid: Box<str>,
    /// The UUID that its firmware shows.
    pub bios_uuid: Box<str>,
    /// Whether it is a template: it cannot be snapshotted.
    pub is_template: bool,
    /// `poweredOn`, `poweredOff` or `suspended`.
    pub power_state: Box<str>,
    /// `connected`, `disconnected`, `inaccessible`, `orphaned` or `invalid`.
    pub connection_state: Box<str>,
    /// Virtual hardware version, such as 19; 0 if unknown.
    pub hardware_version: u32,
    /// Whether changed block tracking is configured (it works since the next stun).
    pub change_tracking: bool,
    /// `guestToolsRunning` and the like.
    pub tools_running: Box<str>,
    /// `running` and the like.
    pub guest_state: Box<str>,
    /// The host it is on.
    pub host: Option<MoRef>,
    /// The datastores it uses.
    pub datastores: Vec<MoRef>,
    /// Datastore path of its configuration file.
    pub config_file: Box<str>,
    /// Whether delta files wait to be merged although no snapshot needs them.
    pub consolidation_needed: bool,
    /// Whether its home is encrypted (it has a key).
    pub is_encrypted: bool,
    /// Custom attribute values by the attribute's key.
    pub attributes: Vec<(i32, Box<str>)>,
    /// Controllers by device key.
    pub controllers: BTreeMap<i32, Controller>,
    /// Disks by device key.
    pub disks: BTreeMap<i32, DiskFacts>,
    /// Whether it has a virtual TPM.
    pub has_vtpm: bool,
    /// Its snapshots, parents before children.
    pub snapshots: Vec<SnapshotFacts>,
    /// Properties that could not be read, with the reason.
    pub unreadable: Vec<(Box<str>, Box<str>)>,
}

impl VmFacts {
    /// How errors and calls name it.
    pub fn vm_ref(&self, moref: &MoRef) -> VmRef {
        VmRef::new(moref.clone(), self.name.to_string())
    }

    /// Where a disk is attached, such as `SCSI (0:1)`; also how exclusions name it.
    pub fn position(&self, disk: &DiskFacts) -> String {
        match self.controllers.get(&disk.controller_key) {
            Some(controller) => {
                format!("{} ({}:{})", controller.kind.name(), controller.bus, disk.unit)
            }
            None => format!("unknown controller {} ({})", disk.controller_key, disk.unit),
        }
    }
}

/// What kind of controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControllerKind {
    /// SCSI, any model.
    Scsi,
    /// IDE.
    Ide,
    /// SATA (AHCI).
    Sata,
    /// NVMe.
    Nvme,
}

impl ControllerKind {
    /// Its name as people write it.
    pub fn name(self) -> &'static str {
        match self {
            ControllerKind::Scsi => "SCSI",
            ControllerKind::Ide => "IDE",
            ControllerKind::Sata => "SATA",
            ControllerKind::Nvme => "NVMe",
        }
    }
}

/// A disk controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Kind.
    pub kind: ControllerKind,
    /// vSphere's type, such as `ParaVirtualSCSIController`.
    pub model: Box<str>,
    /// Bus number.
    pub bus: i32,
    /// Whether its bus is shared with other machines.
    pub is_shared: bool,
}

/// What a disk's file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingKind {
    /// A flat file, thick or thin, or a delta of one.
    Flat,
    /// A hosted sparse file.
    Sparse,
    /// A space-efficient sparse file.
    SeSparse,
    /// A raw LUN in virtual mode: it can be snapshotted.
    RdmVirtual,
    /// A raw LUN in physical mode: it cannot.
    RdmPhysical,
    /// Something else.
    Other(Box<str>),
}

/// How a disk keeps what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskMode {
    /// Snapshots hold it.
    Persistent,
    /// Snapshots leave it out.
    IndependentPersistent,
    /// Snapshots leave it out; writes are forgotten at power-off.
    IndependentNonPersistent,
    /// A mode of old products.
    Other,
}

impl DiskMode {
    /// Whether snapshots leave the disk out.
    pub fn is_independent(self) -> bool {
        matches!(self, DiskMode::IndependentPersistent | DiskMode::IndependentNonPersistent)
    }
}

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// Device key.
    pub key: i32,
    /// Label, such as `Hard disk 1`.
    pub label: Box<str>,
    /// Device key of its controller.
    pub controller_key: i32,
    /// Unit number on its controller.
    pub unit: i32,
    /// UUID of its backing; empty where vSphere gives none.
    pub uuid: Box<str>,
    /// Size in bytes.
    pub capacity_bytes: u64,
    /// Datastore path of the file that is written now, `[datastore] folder/file.vmdk`.
    pub file: Box<str>,
    /// The datastore of that file.
    pub datastore: Option<MoRef>,
    /// Files below it, the nearest first; the last is the base.
    pub chain: Vec<Box<str>>,
    /// What the file is.
    pub backing: BackingKind,
    /// Mode.
    pub mode: DiskMode,
    /// Whether several machines may write it at once.
    pub is_multi_writer: bool,
    /// Whether it is encrypted.
    pub is_encrypted: bool,
    /// Current change id, where changes are tracked.
    pub change_id: Option<Box<str>>,
}

impl DiskFacts {
    /// The file at the end of its chain.
    pub fn base_file(&self) -> &str {
        self.chain.last().unwrap_or(&self.file)
    }

    /// The name of the datastore in a path such as `[name] folder/file`.
    pub fn datastore_name(&self) -> &str {
        let rest = self.file.strip_prefix('[').unwrap_or_default();
        rest.split_once(']').map_or("", |(name, _)| name)
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Its reference.
    pub moref: MoRef,
    /// Its name.
    pub name: Box<str>,
    /// Its description.
    pub description: Box<str>,
    /// When it was made, as the server prints it.
    pub created: Box<str>,
    /// Where its parent stands in the machine's list.
    pub parent: Option<usize>,
    /// Whether the machine runs on top of it.
    pub is_current: bool,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// Name.
    pub name: Box<str>,
    /// Its cluster or compute resource.
    pub parent: Option<MoRef>,
    /// `connected` and the like.
    pub connection_state: Box<str>,
    /// Whether it is in maintenance.
    pub in_maintenance: bool,
    /// Product version, such as `7.0.3`.
    pub version: Box<str>,
    /// Build number.
    pub build: Box<str>,
    /// The datastores it reaches.
    pub datastores: Vec<MoRef>,
}

/// A datastore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatastoreFacts {
    /// Name.
    pub name: Box<str>,
    /// Where it is in the inventory.
    pub parent: Option<MoRef>,
    /// `VMFS`, `NFS`, `NFS41`, `vsan`, `VVOL` …
    pub kind: Box<str>,
    /// Size in bytes.
    pub capacity_bytes: u64,
    /// Free bytes, as last told.
    pub free_bytes: u64,
    /// Its URL, `ds:///vmfs/volumes/…/`.
    pub url: Box<str>,
    /// `normal`, `inMaintenance` …
    pub maintenance_mode: Box<str>,
    /// Whether it can be reached.
    pub is_accessible: bool,
}

/// A folder, datacenter, cluster or compute resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlaceFacts {
    /// Name.
    pub name: Box<str>,
    /// What it is in.
    pub parent: Option<MoRef>,
}
