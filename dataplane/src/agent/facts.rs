//! What a mover tells of itself: its host, and the repository that it serves.
//!
//! In: /proc, DMI, statvfs, its configuration. Out: [`MoverFacts`]. What cannot be had is left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_common::control::{MoverFacts, RepositoryFacts};
use gantry_common::ids::RepositoryId;

/// Where Linux tells the machine's UUID; only root may read it.
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";

/// What does not change while the mover runs.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// Datastore → folder.
    pub(super) mounts: BTreeMap<String, String>,
    pub(super) private_folder: PathBuf,
    pub(super) repository: Option<Served>,
}

/// The repository that is served.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) id: RepositoryId,
    pub(super) port: u16,
    pub(super) path: PathBuf,
}

/// The facts, now.
pub(super) fn facts(standing: &Standing) -> MoverFacts {
    let uname = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let uuid = std::fs::read_to_string(PRODUCT_UUID).ok();
    let repository = standing.repository.as_ref().map(|served| {
        let (capacity_bytes, free_bytes) = space(&served.path).unwrap_or_default();
        RepositoryFacts {
            id: served.id,
            port: served.port,
            path: served.path.display().to_string(),
            capacity_bytes,
            free_bytes,
        }
    });
    MoverFacts {
        host: uname.nodename().to_string_lossy().into_owned(),
        cores: gantry_uring::thread::available_cores().len() as u32,
        memory_bytes: (memory.totalram as u64).saturating_mul(u64::from(memory.mem_unit.max(1))),
        mounts: standing.mounts.clone(),
        machine_uuid: uuid.map(|text| text.trim().to_ascii_lowercase()).filter(|t| !t.is_empty()),
        repository,
        private_folder: standing.private_folder.display().to_string(),
    }
}

/// Capacity and free bytes of the file system that holds a path.
pub(super) fn space(path: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some((bytes(found.f_blocks), bytes(found.f_bavail)))
}

/// Load average over a minute, in hundredths (proc(5)).
pub(super) fn load_hundredths() -> u32 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    (load.unwrap_or(0.0) * 100.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_name_cores_memory_and_space() {
        let path = std::env::temp_dir();
        let id = RepositoryId([1; 16]);
        let served = Served { id, port: 7, path: path.clone() };
        let mounts = [("ds".to_owned(), "/mnt/ds".to_owned())].into();
        let facts = facts(&Standing { mounts, private_folder: path, repository: Some(served) });
        assert!(!facts.host.is_empty() && facts.cores > 0 && facts.memory_bytes > 1 << 20);
        let repository = facts.repository.unwrap();
        assert!(repository.capacity_bytes >= repository.free_bytes && repository.free_bytes > 0);
        assert_eq!(facts.mounts["ds"], "/mnt/ds");
    }
}
