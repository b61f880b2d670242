//! A virtual machine, its disks and snapshots.
//!
//! In: methods' changes. Out: what projections show.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::sim::Password;
use crate::storage::{DiskId, SnapshotId};

/// A machine's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Running.
    On,
    /// Off.
    Off,
    /// Suspended to disk.
    Suspended,
}

impl Power {
    /// vSphere's word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "poweredOn",
            Self::Off => "poweredOff",
            Self::Suspended => "suspended",
        }
    }
}

/// How a link of a disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// `-flat.vmdk`.
    Flat,
    /// `-delta.vmdk` (COWD).
    VmfsSparse,
    /// `-sesparse.vmdk`.
    SeSparse,
    /// A raw device mapping; physical or not.
    RawDevice {
        /// Whether it is in physical compatibility mode.
        physical: bool,
    },
}

/// One link of a disk's chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// The descriptor, `[datastore] folder/name.vmdk`.
    pub file: String,
    /// Its form.
    pub kind: LinkKind,
    /// The change id at the instant when the link was frozen, or the newest.
    pub change_id: Option<String>,
    /// The content id of its descriptor, which a child names as its parent's.
    pub content_id: String,
}

/// A virtual disk of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    /// The device's key.
    pub key: i32,
    /// The controller's key.
    pub controller: i32,
    /// The place on the controller.
    pub unit: i32,
    /// `Hard disk 1`.
    pub label: String,
    /// `persistent`, `independent_persistent`, ...
    pub mode: String,
    /// The size.
    pub capacity_bytes: u64,
    /// The disk's identity.
    pub uuid: String,
    /// The links, the one that is written to first.
    pub chain: Vec<Link>,
    /// Whether it is thin.
    pub thin: bool,
    /// Whether several machines may write to it.
    pub shared: bool,
    /// Whether it is another machine's disk, attached for reading (hot-add).
    pub attached: bool,
    /// What the disk engine calls it; raw devices are not there.
    pub storage: Option<DiskId>,
}

impl Disk {
    /// The link that is written to.
    #[must_use]
    pub fn file(&self) -> &str {
        self.chain.first().map_or("", |link| &link.file)
    }

    /// The oldest link, which names the disk whatever its snapshots.
    #[must_use]
    pub fn base_file(&self) -> &str {
        self.chain.last().map_or("", |link| &link.file)
    }

    /// Whether snapshots include it.
    #[must_use]
    pub fn in_snapshots(&self) -> bool {
        let physical = LinkKind::RawDevice { physical: true };
        !self.mode.starts_with("independent") && self.chain.iter().all(|l| l.kind != physical)
    }
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its number in the site.
    pub id: u32,
    /// Its number in the machine.
    pub number: i32,
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// When it was taken.
    pub created: Timestamp,
    /// Whether the guest was quiesced.
    pub quiesced: bool,
    /// The machine's power then.
    pub power: Power,
    /// The snapshot before it.
    pub parent: Option<u32>,
    /// The disks as they were, with their frozen links.
    pub disks: Vec<Disk>,
    /// Whether change tracking was on.
    pub cbt: bool,
    /// What the disk engine calls it; absent when it holds no disk.
    pub storage: Option<SnapshotId>,
}

/// A virtual machine or template.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The BIOS UUID.
    pub uuid: String,
    /// vCenter's own UUID of it.
    pub instance_uuid: String,
    /// Its datacenter.
    pub datacenter: usize,
    /// Its folder's path.
    pub folder: String,
    /// Its host.
    pub host: usize,
    /// Its resource pool's path.
    pub pool: String,
    /// Its home datastore.
    pub datastore: usize,
    /// Its folder on that datastore.
    pub home: String,
    /// The name of its files there, without ending.
    pub stem: String,
    /// Whether it runs.
    pub power: Power,
    /// Whether it is a template.
    pub template: bool,
    /// `otherLinux64Guest` and the like.
    pub guest_id: String,
    /// What its tools say its name is.
    pub host_name: Option<String>,
    /// Its address.
    pub ip_address: Option<String>,
    /// Whether its tools run.
    pub tools: bool,
    /// Whether its tools are installed: they run whenever it does.
    pub tools_installed: bool,
    /// Who may log in to its guest.
    pub guest_users: BTreeMap<String, Password>,
    /// Processors.
    pub cpus: i32,
    /// Memory.
    pub memory_mib: i32,
    /// `vmx-19` and the like.
    pub hardware: String,
    /// `bios` or `efi`.
    pub firmware: String,
    /// Whether it has a virtual TPM.
    pub tpm: bool,
    /// Its networks.
    pub networks: Vec<usize>,
    /// A note.
    pub annotation: String,
    /// Whether changed blocks are tracked (set; effective after a stun).
    pub cbt: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// SCSI controllers' keys and sharing.
    pub controllers: Vec<(i32, String)>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The snapshot that it runs on.
    pub current: Option<u32>,
    /// Whether disks must be consolidated.
    pub consolidation_needed: bool,
    /// Values of custom attributes.
    pub fields: BTreeMap<i32, String>,
    /// Names of tags.
    pub tags: Vec<String>,
    /// Other settings.
    pub extra: BTreeMap<String, String>,
    /// `connected`, `disconnected`, `inaccessible`.
    pub connection: String,
    /// When its configuration last changed.
    pub modified: Timestamp,
    /// How often its configuration changed.
    pub change_version: u64,
    /// Whether a task holds it.
    pub busy: bool,
    /// The number of the next snapshot.
    pub next_snapshot: i32,
}

impl Machine {
    /// Where its configuration lies, on the datastore of that name.
    #[must_use]
    pub fn config_file(&self, store: &str) -> String {
        format!("[{store}] {}/{}.vmx", self.home, self.stem)
    }

    /// A snapshot by its number in the site.
    #[must_use]
    pub fn snapshot(&self, id: u32) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// A disk by its device key.
    #[must_use]
    pub fn disk(&self, key: i32) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.key == key)
    }

    /// The engine's numbers of the disks that are its own.
    #[must_use]
    pub fn own_disks(&self) -> Vec<DiskId> {
        let own = self.disks.iter().filter(|disk| !disk.attached);
        own.filter_map(|disk| disk.storage).collect()
    }

    /// The engine's numbers of its snapshots.
    #[must_use]
    pub fn own_snapshots(&self) -> Vec<SnapshotId> {
        self.snapshots.iter().filter_map(|snapshot| snapshot.storage).collect()
    }

    /// Notes a change of the configuration.
    pub fn changed(&mut self) {
        self.modified = Timestamp::now();
        self.change_version += 1;
    }
}
