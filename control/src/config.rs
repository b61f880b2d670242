//! The configuration of `gantry` as long as it works without a service: one TOML file.
//!
//! In: TOML. Out: [`Config`]. Secrets are never in it: the password stands in a file of its own that
//! nobody else may read. Must not: connect to anything.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::manage::Retention;
use gantry_common::source::ServerTrust;
use gantry_common::units::{BlockSize, Compression, Rate};
use gantry_common::work::RepositoryAccess;
use gantry_http::{Endpoint, Trust};
use serde::Deserialize;

use crate::cbt::Policy;
use crate::durable_file;
use crate::limits;
use crate::run::settings::{Quiesce, RunSettings};
use crate::transport::{ProxyFacts, TransportMode};
use crate::vcenter::{Secret, Settings};

const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The vCenter.
    pub vcenter: VCenterConfig,
    /// The repository.
    pub repository: RepositoryAccess,
    /// This host as a proxy.
    #[serde(default)]
    pub proxy: ProxyFacts,
    /// How to back up.
    #[serde(default)]
    pub backup: BackupConfig,
    /// Where the ledger of unfinished steps stands.
    #[serde(default = "state_default")]
    pub state: PathBuf,
    /// The data mover's program; default: `gantry-mover` beside this one.
    pub mover: Option<PathBuf>,
}

/// A vCenter or ESXi, and as whom to log in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VCenterConfig {
    /// `https://HOST[:PORT]`.
    pub url: String,
    /// User name.
    pub user: String,
    /// File with the password, readable by its owner only.
    pub password_file: PathBuf,
    /// SHA-256 of its certificate.
    pub thumbprint: Option<String>,
    /// PEM file with the authority that signed it.
    pub ca_file: Option<PathBuf>,
}

/// How to back up.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackupConfig {
    /// The only transport mode to use; default: the first that works.
    pub transport: Option<TransportMode>,
    /// What to do where changed-block tracking cannot serve.
    pub on_full: Policy,
    /// Whether to switch changed-block tracking on where it is off and can be.
    pub enable_cbt: bool,
    /// Percent of the blocks called unchanged that are compared nevertheless.
    pub audit_percent: f64,
    /// Whether VMware Tools quiesce the guest for the snapshot.
    pub quiesce: bool,
    /// Snapshots of Gantry that a datastore may have at a time.
    pub snapshots_per_datastore: usize,
    /// Seconds before each further round of removing a snapshot that will not go.
    pub removal_pauses_seconds: Vec<u64>,
    /// Block size.
    pub block_size: String,
    /// Compression.
    pub compression: String,
    /// Limit of the rate on the wire, such as `200MB/s`.
    pub rate: Option<String>,
    /// What the repository keeps.
    pub retention: Option<Retention>,
}

impl Default for BackupConfig {
    fn default() -> BackupConfig {
        BackupConfig {
            transport: None,
            on_full: Policy::default(),
            enable_cbt: true,
            audit_percent: 0.1,
            quiesce: false,
            snapshots_per_datastore: limits::DATASTORE_SNAPSHOTS_MAX,
            removal_pauses_seconds: limits::SNAPSHOT_ROUND_PAUSES_SECONDS.to_vec(),
            block_size: BlockSize::default().to_string(),
            compression: Compression::default().to_string(),
            rate: None,
            retention: None,
        }
    }
}

fn state_default() -> PathBuf {
    PathBuf::from("/var/lib/gantry")
}

fn usage(text: String) -> Failure {
    Failure::new(FailureKind::Usage, text)
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// `Usage`, with file and line.
    pub fn load(path: &Path) -> Result<Config, Failure> {
        let text = read_small(path)?;
        let config: Config =
            toml::from_str(&text).map_err(|error| usage(format!("{}: {error}", path.display())))?;
        config.backup.settings()?;
        Ok(config)
    }

    /// Folder for the cookies of sessions that run.
    pub fn private(&self) -> PathBuf {
        self.state.join("private")
    }

    /// The data mover's program.
    ///
    /// # Errors
    /// `Usage` if it is nowhere.
    pub fn mover(&self) -> Result<PathBuf, Failure> {
        if let Some(program) = &self.mover {
            return Ok(program.clone());
        }
        let own = std::env::current_exe().ok();
        let beside = own.and_then(|own| Some(own.parent()?.join("gantry-mover")));
        beside.filter(|program| program.exists()).ok_or_else(|| {
            usage("gantry-mover is not beside this program: name it as `mover = …`".to_owned())
        })
    }
}

/// Whose snapshots are this installation's: its own random name, kept in the state folder, and the
/// vCenter.
///
/// # Errors
/// `Internal` if that name can be neither read nor written.
pub fn owner(state: &Path, vcenter_id: &str) -> Result<String, Failure> {
    let path = state.join("installation");
    let fail = |error: std::io::Error| {
        Failure::new(FailureKind::Internal, format!("{}: {error}", path.display()))
    };
    let name = match std::fs::read_to_string(&path) {
        Ok(name) => name,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut random = [0u8; 16];
            getrandom::fill(&mut random)
                .map_err(|error| fail(std::io::Error::other(error.to_string())))?;
            let name = format!("{:032x}", u128::from_le_bytes(random));
            std::fs::create_dir_all(state).map_err(fail)?;
            durable_file::replace(&path, name.as_bytes()).map_err(fail)?;
            name
        }
        Err(error) => return Err(fail(error)),
    };
    Ok(format!("{} {vcenter_id}", name.trim()))
}

/// Whom to talk to, from `https://HOST[:PORT]`.
///
/// # Errors
/// `Usage`.
pub fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    let wrong = || usage(format!("vcenter.url '{url}': give https://HOST or https://HOST:PORT"));
    let host = url.strip_prefix("https://").ok_or_else(wrong)?;
    let host = host.strip_suffix("/sdk").unwrap_or(host).trim_end_matches('/');
    host.parse().map_err(|_| wrong())
}

impl BackupConfig {
    /// The block size.
    ///
    /// # Errors
    /// `Usage`.
    pub fn block_size(&self) -> Result<BlockSize, Failure> {
        parse("block_size", &self.block_size)
    }

    /// The compression.
    ///
    /// # Errors
    /// `Usage`.
    pub fn compression(&self) -> Result<Compression, Failure> {
        parse("compression", &self.compression)
    }

    /// The rate in bytes a second.
    ///
    /// # Errors
    /// `Usage`.
    pub fn rate(&self) -> Result<Option<u64>, Failure> {
        let rate: Option<Rate> =
            self.rate.as_deref().map(|rate| parse("rate", rate)).transpose()?;
        Ok(rate.map(|rate| rate.bytes_per_second))
    }

    /// All of it, for a run.
    ///
    /// # Errors
    /// `Usage`.
    pub fn settings(&self) -> Result<RunSettings, Failure> {
        Ok(RunSettings {
            modes: self.transport.into_iter().collect(),
            failover: true,
            on_full: self.on_full,
            enable_cbt: self.enable_cbt,
            audit_per_million: self.audit_per_million()?,
            quiesce: if self.quiesce { Quiesce::On } else { Quiesce::Off },
            snapshots_per_datastore: self.snapshots_per_datastore,
            removal_pauses: self.removal_pauses(),
            block_size: self.block_size()?,
            compression: self.compression()?,
            rate: self.rate()?,
            retention: self.retention,
        })
    }

    /// The pauses between rounds of removing a snapshot.
    pub fn removal_pauses(&self) -> Vec<Duration> {
        self.removal_pauses_seconds.iter().copied().map(Duration::from_secs).collect()
    }

    /// The audit's share; nothing if it is switched off with 0.
    ///
    /// # Errors
    /// `Usage` if it is no percentage.
    pub fn audit_per_million(&self) -> Result<Option<u32>, Failure> {
        match self.audit_percent {
            0.0 => Ok(None),
            percent if percent > 0.0 && percent <= 100.0 => {
                Ok(Some((percent * 10_000.0).ceil() as u32))
            }
            percent => Err(usage(format!("audit_percent = {percent}: give 0 to 100"))),
        }
    }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| usage(format!("{what}: {error}")))
}

impl VCenterConfig {
    /// Whom to talk to.
    ///
    /// # Errors
    /// `Usage`.
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        endpoint(&self.url)
    }

    /// Whose certificate it may show, as a mover is told it.
    ///
    /// # Errors
    /// `Usage` unless exactly one of thumbprint and CA file is given.
    pub fn server_trust(&self) -> Result<ServerTrust, Failure> {
        match (&self.thumbprint, &self.ca_file) {
            (Some(thumbprint), None) => Ok(ServerTrust::Thumbprint(thumbprint.clone())),
            (None, Some(file)) => Ok(ServerTrust::CaPem(read_small(file)?)),
            _ => Err(usage(
                "give either vcenter.thumbprint (SHA-256 of the certificate) or vcenter.ca_file"
                    .to_owned(),
            )),
        }
    }

    /// Everything that the client needs.
    ///
    /// # Errors
    /// `Usage`, naming file and field.
    pub fn settings(&self) -> Result<Settings, Failure> {
        let trust = match self.server_trust()? {
            ServerTrust::Thumbprint(text) => Trust::Sha256Thumbprint(
                text.parse().map_err(|error| usage(format!("vcenter.thumbprint: {error}")))?,
            ),
            ServerTrust::CaPem(pem) => Trust::CaPem(pem.into_bytes()),
        };
        let password = read_password(&self.password_file)?;
        Ok(Settings::new(self.endpoint()?, trust, &self.user, password))
    }
}

fn read_small(path: &Path) -> Result<String, Failure> {
    let fail = |error: std::io::Error| usage(format!("{}: {error}", path.display()));
    let mut text = String::new();
    File::open(path).map_err(fail)?.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

/// The first line of a file that only its owner may read.
fn read_password(path: &Path) -> Result<Secret, Failure> {
    let facts = std::fs::metadata(path)
        .map_err(|error| usage(format!("vcenter.password_file {}: {error}", path.display())))?;
    if facts.mode() & 0o077 != 0 {
        return Err(usage(format!(
            "{} can be read by others (mode {:o}): chmod 600 it",
            path.display(),
            facts.mode() & 0o777
        )));
    }
    let text = read_small(path)?;
    Ok(Secret::new(text.lines().next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{Config, Policy};
    use std::os::unix::fs::PermissionsExt;

    const TEXT: &str = r#"
        state = "/tmp/state"
        [vcenter]
        url = "https://vc.example:8443/sdk"
        user = "backup"
        password_file = "PASSWORD"
        thumbprint = "00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF"
        [repository]
        address = "/srv/gantry"
        [proxy]
        mounts = { ds1 = "/mnt/ds1" }
        [backup]
        transport = "direct"
        audit_percent = 0.5
    "#;

    #[test]
    fn a_configuration_is_read_and_its_password_file_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let (file, password) = (dir.path().join("gantry.toml"), dir.path().join("password"));
        std::fs::write(&file, TEXT.replace("PASSWORD", password.to_str().unwrap())).unwrap();
        std::fs::write(&password, "secret word\nmore\n").unwrap();
        let config = Config::load(&file).unwrap();
        assert_eq!(config.vcenter.endpoint().unwrap().to_string(), "vc.example:8443");
        assert_eq!(config.backup.audit_per_million().unwrap(), Some(5000));
        assert_eq!(config.backup.on_full, Policy::Warn);
        std::fs::set_permissions(&password, PermissionsExt::from_mode(0o644)).unwrap();
        let error = config.vcenter.settings().unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).unwrap();
        let settings = config.vcenter.settings().unwrap();
        assert!(!format!("{settings:?}").contains("secret word"));
    }

    #[test]
    fn nonsense_is_refused_with_the_field_s_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gantry.toml");
        for (from, to, says) in [
            ("audit_percent = 0.5", "audit_percent = 101", "audit_percent"),
            ("audit_percent = 0.5", "block_size = \"3M\"", "block_size"),
            ("transport = \"direct\"", "transport = \"san\"", "san"),
            ("user = \"backup\"", "password = \"x\"\nuser = \"backup\"", "password"),
        ] {
            std::fs::write(&file, TEXT.replace(from, to)).unwrap();
            let error = Config::load(&file).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
