//! NBD against real servers and against one that breaks every rule.

use std::path::Path;
use std::time::Duration;

use gantry_common::source::{NbdAddress, NbdSource};

use super::NbdDisk;

mod fake;
mod hostile;
mod real;

const MIB: u64 = 1 << 20;

fn unix(socket: &Path) -> NbdSource {
    let address = NbdAddress::Unix { path: socket.to_owned() };
    NbdSource { address, export: String::new(), tls: None, connections: 0 }
}

fn open(socket: &Path) -> NbdDisk {
    NbdDisk::open(&unix(socket), Duration::from_secs(20)).unwrap()
}

/// Bytes with holes of many sizes.
fn content(random: &mut fastrand::Rng, size_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; size_bytes as usize];
    let mut at = 0;
    while at < bytes.len() {
        let len = random.usize(1..400_000).min(bytes.len() - at);
        if random.bool() {
            random.fill(&mut bytes[at..at + len]);
        }
        at += len;
    }
    bytes
}
