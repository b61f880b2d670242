//! Transport modes: the roads by which a mover reaches a snapshot's disk (DESIGN §6).
//!
//! In: nothing. Out: the five names and their order. Which of them can work for a disk is decided in
//! `control/src/transport.rs`; which proxy takes it, in `control/scheduler`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A road to the blocks of a snapshot's disk (DESIGN §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportMode {
    /// The datastore is mounted on the proxy: VMDK descriptor and extents are read as files.
    Direct,
    /// The frozen disk is attached to the proxy VM, which reads the block device.
    Hotadd,
    /// An NBD server that has the frozen disk.
    Nbd,
    /// Ranged reads of the flat extent through the host's datastore access.
    Https,
    /// The host's export stream: everything in one go, so for fulls only.
    Nfc,
}

impl TransportMode {
    /// All, in the order in which they are tried.
    pub const ALL: [TransportMode; 5] = [
        TransportMode::Direct,
        TransportMode::Hotadd,
        TransportMode::Nbd,
        TransportMode::Https,
        TransportMode::Nfc,
    ];

    /// As in the configuration and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TransportMode::Direct => "direct",
            TransportMode::Hotadd => "hotadd",
            TransportMode::Nbd => "nbd",
            TransportMode::Https => "https",
            TransportMode::Nfc => "nfc",
        }
    }
}

impl fmt::Display for TransportMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TransportMode {
    type Err = String;
    fn from_str(text: &str) -> Result<TransportMode, String> {
        let found = TransportMode::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("no transport mode '{text}': direct, hotadd, nbd, https, nfc"))
    }
}
