//! A specification in, an open disk out.
//!
//! In: a [`SourceSpec`]. Out: a [`Disk`]. It decides which kind of source serves; each kind opens
//! itself.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_common::limits;
use gantry_common::source::{HttpAuth, SourceFormat, SourceSpec, uuid_digits};

use super::credentials::CredentialSource;
use super::detect::{LOOK_BYTES, Taken, taken_for};
use super::durable::DurableDisk;
use super::https::HttpsDisk;
use super::nbd::NbdDisk;
use super::nfc::NfcDisk;
use super::remote::RemoteError;
use super::{Disk, DiskError};

/// How long a source may fail without one read that succeeds.
const PATIENCE: Duration = Duration::from_millis(limits::SOURCE_PATIENCE_MS_MAX);
/// Where udev puts names of devices that hold their UUIDs.
const BY_ID: &str = "/dev/disk/by-id";
/// How long a disk that was attached may take to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Names looked at in one folder.
const NAMES_MAX: usize = 65_536;

impl Disk {
    /// Opens what the specification names, read-only.
    ///
    /// # Errors
    /// [`DiskError`], naming the source and what to do.
    pub fn open_source(spec: &SourceSpec) -> Result<Disk, DiskError> {
        Disk::open_source_with(spec, None)
    }

    /// As [`Disk::open_source`]; `credentials` take the place of those in the specification, so that
    /// a control plane can renew them.
    ///
    /// # Errors
    /// As [`Disk::open_source`].
    pub fn open_source_with(
        spec: &SourceSpec,
        credentials: Option<CredentialSource>,
    ) -> Result<Disk, DiskError> {
        spec.check()?;
        let credentials = |auth: &HttpAuth| match credentials {
            Some(fed) => Ok(fed),
            None => CredentialSource::new(auth)
                .map_err(|what| RemoteError::new(what, "correct the file with the credentials")),
        };
        let remote = |source: RemoteError| DiskError::Remote { label: spec.label(), source };
        match spec {
            SourceSpec::Path { path, format: SourceFormat::Auto } => open_auto(path),
            SourceSpec::Path { path, format: SourceFormat::Raw } => Disk::open(path, true),
            SourceSpec::Path { path, format: SourceFormat::Vmdk } => Disk::open_vmdk(path, true),
            SourceSpec::DeviceByUuid { uuid, folder } => {
                Disk::open(&attached_device(uuid, folder.as_deref())?, true)
            }
            SourceSpec::Nbd(source) => {
                let disk = NbdDisk::open(source, PATIENCE).map_err(remote)?;
                Ok(Disk::of_remote(Box::new(disk)))
            }
            SourceSpec::Https(source) => {
                let credentials = credentials(&source.auth).map_err(remote)?;
                let opened = HttpsDisk::open(source, spec.label(), credentials, PATIENCE);
                Ok(Disk::of_remote(Box::new(opened.map_err(remote)?)))
            }
            SourceSpec::Nfc(source) => {
                let credentials = credentials(&source.auth).map_err(remote)?;
                let disk = NfcDisk::open(source, spec.label(), credentials).map_err(remote)?;
                Ok(Disk::of_remote(Box::new(disk)))
            }
            SourceSpec::Durable { label, size_bytes } => {
                Ok(Disk::of_remote(Box::new(DurableDisk::new(label.clone(), *size_bytes))))
            }
        }
    }
}

/// Opens a path as what its name and its content say it is.
fn open_auto(path: &Path) -> Result<Disk, DiskError> {
    let disk = Disk::open(path, true)?;
    if disk.is_block_device() {
        return Ok(disk);
    }
    let mut start = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(LOOK_BYTES as u64).read_to_end(&mut start));
    read.map_err(|source| DiskError::Query {
        path: path.to_owned(),
        action: "read the start",
        source,
    })?;
    match taken_for(path, disk.size_bytes(), &start) {
        Taken::Raw(note) => Ok(disk.with_note(note)),
        Taken::Vmdk => Disk::open_vmdk(path, true),
        Taken::Unclear(why) => Err(DiskError::Unclear { path: path.to_owned(), why }),
    }
}

/// The device of a disk that is attached to this host, or is about to be; `folder`: where attached
/// disks appear, usually `/dev/disk/by-id`. Blocks meanwhile.
///
/// # Errors
/// It does not appear within a minute.
pub fn attached_device(uuid: &str, folder: Option<&Path>) -> Result<PathBuf, DiskError> {
    device_of(uuid, folder.unwrap_or(Path::new(BY_ID)), APPEARS_WITHIN)
}

/// Waits for a device or file in `folder` whose name holds the UUID. A partition's name does not
/// count.
fn device_of(uuid: &str, folder: &Path, within: Duration) -> Result<PathBuf, DiskError> {
    let started = Instant::now();
    loop {
        if let Some(found) = uuid_digits(uuid).and_then(|wanted| named(folder, &wanted)) {
            return Ok(found);
        }
        if started.elapsed() >= within {
            return Err(DiskError::NoSuchUuid {
                uuid: uuid.to_owned(),
                folder: folder.to_owned(),
                waited_seconds: within.as_secs(),
            });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The first name, in alphabetical order, that holds these digits.
fn named(folder: &Path, wanted: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names =
        entries.take(NAMES_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let holds = |name: &String| {
        let plain: String = name.chars().filter(|c| *c != '-').collect();
        plain.to_ascii_lowercase().contains(wanted) && !name.contains("-part")
    };
    names.filter(holds).min().map(|name| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::{DiskError, device_of};
    use std::fs;
    use std::time::Duration;

    const UUID: &str = "6000C293-5d0a-ffce-8c4d-000000000001";

    #[test]
    fn a_device_is_found_by_its_uuid_however_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let none = device_of(UUID, folder.path(), Duration::ZERO);
        assert!(matches!(none, Err(DiskError::NoSuchUuid { .. })), "{none:?}");
        let wwn = "wwn-0x6000c2935d0affce8c4d000000000001";
        for name in ["scsi-36000c2935d0affce8c4d000000000002", &format!("{wwn}-part1")] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        assert!(device_of(UUID, folder.path(), Duration::ZERO).is_err());
        let path = folder.path().join(wwn);
        std::thread::scope(|scope| {
            // It appears while it is waited for.
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                fs::write(&path, "x").unwrap();
            });
            let found = device_of(UUID, folder.path(), Duration::from_secs(20)).unwrap();
            assert_eq!(found, path);
        });
        fs::remove_file(&path).unwrap();
        let dashed = folder.path().join(UUID);
        fs::write(&dashed, "x").unwrap();
        let plain = UUID.replace('-', "").to_uppercase();
        assert_eq!(device_of(&plain, folder.path(), Duration::ZERO).unwrap(), dashed);
    }
}
