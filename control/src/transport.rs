//! Transport modes: by which road the mover reaches a snapshot's disk, and why.
//!
//! In: facts about a frozen disk and a proxy, the job's policy, whether the run is a full. Out: the
//! modes that can work, in the order in which they are tried, each with its reason, and those that
//! cannot, with theirs: both go to the session log. Pure: asks nobody. Must not: choose a mode that
//! could read something else than the frozen disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

pub use gantry_common::transport_mode::TransportMode;
use serde::{Deserialize, Serialize};

/// What a proxy can do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyFacts {
    /// Datastores that are mounted on it, by their name in vCenter.
    pub mounts: BTreeMap<String, PathBuf>,
    /// The virtual machine that it is, if it is one.
    pub vm: Option<ProxyVm>,
    /// Address of an NBD server for a disk; `{vm}`, `{disk_uuid}`, `{datastore}` and `{file}` are
    /// filled in.
    pub nbd_template: Option<String>,
    /// Modes that it may use; none named: all that it can.
    pub modes: Vec<TransportMode>,
}

/// A proxy that is a virtual machine of the same vCenter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyVm {
    /// Its instance UUID in vCenter.
    pub instance_uuid: String,
    /// Datastores that its host reaches.
    pub datastores: BTreeSet<String>,
    /// Where attached disks appear, under names that hold their UUID; default `/dev/disk/by-id`.
    pub device_folder: Option<PathBuf>,
}

/// What a frozen disk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrozenBacking {
    /// One flat extent: the base disk, and no snapshot below it.
    Flat,
    /// A delta on top of others: the VM had snapshots before.
    Delta,
    /// Anything else.
    Other,
}

/// A frozen disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenDisk {
    /// For the log.
    pub label: String,
    /// Datastore of the frozen backing.
    pub datastore: String,
    /// What the backing is.
    pub backing: FrozenBacking,
    /// vCenter has given its UUID.
    pub has_uuid: bool,
    /// It is attached to an IDE controller.
    pub is_ide: bool,
    /// Its files are encrypted: whoever reads them reads ciphertext.
    pub is_encrypted: bool,
}

/// What the run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Every block, once, in order.
    Full,
    /// Some blocks, at random.
    Parts,
}

/// A mode with the reason for or against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The mode.
    pub mode: TransportMode,
    /// For the session log.
    pub reason: String,
}

/// The roads to a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roads {
    /// To be tried in this order.
    pub open: Vec<Judged>,
    /// Not possible.
    pub closed: Vec<Judged>,
}

/// Judges every mode that is `allowed`; none named: all.
pub fn roads(
    disk: &FrozenDisk,
    proxy: &ProxyFacts,
    allowed: &[TransportMode],
    need: Need,
) -> Roads {
    let mut roads = Roads::default();
    for mode in TransportMode::ALL {
        if !allowed.is_empty() && !allowed.contains(&mode) {
            continue;
        }
        match judge(mode, disk, proxy, need) {
            Ok(reason) => roads.open.push(Judged { mode, reason }),
            Err(reason) => roads.closed.push(Judged { mode, reason }),
        }
    }
    roads
}

fn judge(
    mode: TransportMode,
    disk: &FrozenDisk,
    proxy: &ProxyFacts,
    need: Need,
) -> Result<String, String> {
    if !proxy.modes.is_empty() && !proxy.modes.contains(&mode) {
        return Err("the proxy is configured not to use it".to_owned());
    }
    let datastore = &disk.datastore;
    let reads_files =
        matches!(mode, TransportMode::Direct | TransportMode::Nbd | TransportMode::Https);
    if disk.is_encrypted && reads_files {
        return Err("the disk is encrypted, and its files hold ciphertext".to_owned());
    }
    match mode {
        TransportMode::Direct => match proxy.mounts.get(datastore) {
            Some(mount) => {
                Ok(format!("datastore {datastore} is mounted on the proxy at {}", mount.display()))
            }
            None => Err(format!("datastore {datastore} is not mounted on the proxy")),
        },
        TransportMode::Hotadd => hotadd(disk, proxy),
        TransportMode::Nbd => match &proxy.nbd_template {
            Some(_) => Ok("the proxy has an NBD server for it".to_owned()),
            None => Err("the proxy has no NBD server configured".to_owned()),
        },
        TransportMode::Https => match disk.backing {
            FrozenBacking::Flat => {
                Ok(format!("the flat extent can be read through the host from {datastore}"))
            }
            FrozenBacking::Delta => Err("the frozen disk is a delta on older snapshots, which \
                 ranged reads of one file do not resolve"
                .to_owned()),
            FrozenBacking::Other => Err("the frozen disk is no flat extent".to_owned()),
        },
        TransportMode::Nfc => match need {
            Need::Full => Ok("the whole disk is read, so the export stream serves".to_owned()),
            Need::Parts => Err("an export stream cannot read parts of a disk".to_owned()),
        },
    }
}

fn hotadd(disk: &FrozenDisk, proxy: &ProxyFacts) -> Result<String, String> {
    let Some(vm) = &proxy.vm else {
        return Err("the proxy is no virtual machine of this vCenter".to_owned());
    };
    let datastore = &disk.datastore;
    if disk.is_ide {
        return Err("disks of an IDE controller cannot be attached to a running proxy".to_owned());
    }
    if !disk.has_uuid {
        return Err("the disk has no UUID by which the proxy could find it".to_owned());
    }
    if !vm.datastores.contains(datastore) {
        return Err(format!("the proxy's host does not reach datastore {datastore}"));
    }
    Ok(format!("the proxy is a virtual machine whose host reaches datastore {datastore}"))
}

#[cfg(test)]
mod tests {
    use super::{FrozenBacking, FrozenDisk, Need, ProxyFacts, ProxyVm, TransportMode, roads};

    fn disk(backing: FrozenBacking) -> FrozenDisk {
        FrozenDisk {
            label: "Hard disk 1".into(),
            datastore: "ds1".into(),
            backing,
            has_uuid: true,
            is_ide: false,
            is_encrypted: false,
        }
    }

    fn able() -> ProxyFacts {
        ProxyFacts {
            mounts: [("ds1".to_owned(), "/mnt/ds1".into())].into(),
            vm: Some(ProxyVm {
                instance_uuid: "u".into(),
                datastores: ["ds1".to_owned()].into(),
                device_folder: None,
            }),
            nbd_template: Some("nbd://127.0.0.1/{disk_uuid}".into()),
            modes: Vec::new(),
        }
    }

    fn modes(disk: &FrozenDisk, proxy: &ProxyFacts, need: Need) -> Vec<&'static str> {
        let roads = roads(disk, proxy, &[], need);
        assert_eq!(roads.open.len() + roads.closed.len(), 5, "each mode has a reason");
        roads.open.iter().map(|judged| judged.mode.name()).collect()
    }

    #[test]
    fn each_mode_is_offered_only_where_it_reads_the_frozen_disk() {
        use FrozenBacking::{Delta, Flat, Other};
        let all = ["direct", "hotadd", "nbd", "https", "nfc"];
        assert_eq!(modes(&disk(Flat), &able(), Need::Full), all);
        assert_eq!(modes(&disk(Flat), &able(), Need::Parts), all[..4]);
        assert_eq!(modes(&disk(Delta), &able(), Need::Parts), all[..3]);
        assert_eq!(modes(&disk(Other), &ProxyFacts::default(), Need::Full), ["nfc"]);
        assert_eq!(modes(&disk(Flat), &ProxyFacts::default(), Need::Parts), ["https"]);
        let elsewhere = FrozenDisk { datastore: "ds2".into(), ..disk(Flat) };
        assert_eq!(modes(&elsewhere, &able(), Need::Parts), ["nbd", "https"]);
        let ide = FrozenDisk { is_ide: true, ..disk(Flat) };
        assert_eq!(modes(&ide, &able(), Need::Parts), ["direct", "nbd", "https"]);
        let encrypted = FrozenDisk { is_encrypted: true, ..disk(Flat) };
        assert_eq!(modes(&encrypted, &able(), Need::Full), ["hotadd", "nfc"]);
        let nameless = FrozenDisk { has_uuid: false, ..disk(Flat) };
        assert_eq!(modes(&nameless, &able(), Need::Parts), ["direct", "nbd", "https"]);
    }

    #[test]
    fn a_fixed_mode_is_tried_alone_and_says_why_it_cannot() {
        let fixed = [TransportMode::Nfc];
        let roads = roads(&disk(FrozenBacking::Flat), &able(), &fixed, Need::Parts);
        assert!(roads.open.is_empty());
        assert_eq!(roads.closed.len(), 1);
        assert!(roads.closed[0].reason.contains("parts"));
    }
}
