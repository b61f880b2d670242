//! The configuration file of `gantry-mover serve`.
//!
//! In: TOML. Out: [`ServeConfig`], checked: whatever it says fits together. Unknown keys are refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use gantry_common::failure::{Failure, FailureKind};
use serde::Deserialize;

use crate::agent::{ControlConfig, ProxyConfig};

/// The configuration file of `gantry-mover serve`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Where other movers reach this one: needed for a repository.
    pub listen: Option<Listen>,
    /// This mover's identity.
    pub identity: FileOf,
    /// Whom it lets in: needed for a repository.
    pub trust: Option<TrustConfig>,
    /// The repository it serves; without one the mover is a proxy only.
    pub repository: Option<RepositoryConfig>,
    /// gantryd, whose tasks it carries out.
    pub control: Option<ControlConfig>,
    /// What it can read.
    #[serde(default)]
    pub proxy: ProxyConfig,
    /// What happens at SIGTERM.
    #[serde(default)]
    pub drain: Drain,
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Address and port, for UDP (QUIC) and TCP (TLS) alike.
    pub address: SocketAddr,
}

/// A file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOf {
    /// Its path.
    pub file: PathBuf,
}

/// Whom the mover lets in, and what for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// Pins and certificates of the peers.
    pub file: PathBuf,
    /// Pins of those peers who may look after the repository (delete points, collect, verify).
    /// Without it every peer may.
    pub managers: Option<PathBuf>,
}

/// The repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// Its folder.
    pub path: PathBuf,
    /// Make it if it is not there.
    #[serde(default)]
    pub create: bool,
    /// Key of the tickets that a control plane issues (32 bytes, mode 0600). With it nobody is let
    /// in without a ticket.
    pub ticket_key: Option<PathBuf>,
}

/// What happens at SIGTERM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Seconds that running sessions get.
    pub seconds: u64,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { seconds: 30 }
    }
}

/// Reads and checks the file.
///
/// # Errors
/// `Usage`, with file and line.
pub fn load(file: &Path) -> Result<ServeConfig, Failure> {
    let usage = |text: String| Failure::new(FailureKind::Usage, text);
    let text = std::fs::read_to_string(file)
        .map_err(|error| usage(format!("configuration {}: {error}", file.display())))?;
    let config: ServeConfig = toml::from_str(&text)
        .map_err(|error| usage(format!("configuration {}: {error}", file.display())))?;
    config.check().map_err(|text| usage(format!("configuration {}: {text}", file.display())))?;
    Ok(config)
}

impl ServeConfig {
    fn check(&self) -> Result<(), String> {
        match (&self.repository, &self.control) {
            (None, None) => Err("there is nothing to serve: it needs a [repository], a [control] \
                                 section that says where gantryd is, or both"
                .into()),
            (Some(_), _) if self.listen.is_none() || self.trust.is_none() => {
                Err("a [repository] needs [listen] and [trust]".into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ServeConfig;

    fn check(text: &str) -> Result<(), String> {
        let config: ServeConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()
    }

    #[test]
    fn a_proxy_needs_gantryd_and_a_repository_needs_a_place_to_listen() {
        let identity = "identity.file = \"i\"\n";
        let control = "[control]\naddress = \"h:1\"\nname = \"g\"\nauthority = \"a\"\n";
        let repository = "[repository]\npath = \"r\"\n";
        let listen = "[listen]\naddress = \"127.0.0.1:1\"\n[trust]\nfile = \"t\"\n";
        let mounts = "[proxy]\nmounts = { ds = \"/mnt/ds\" }\n";
        assert_eq!(check(&[identity, control, mounts].concat()), Ok(()));
        assert_eq!(check(&[identity, repository, listen].concat()), Ok(()));
        assert_eq!(check(&[identity, control, repository, listen].concat()), Ok(()));
        assert!(check(identity).unwrap_err().contains("nothing to serve"));
        assert!(check(&[identity, repository].concat()).unwrap_err().contains("[listen]"));
        assert!(check(&[identity, control, "key = 1\n"].concat()).is_err());
    }
}
