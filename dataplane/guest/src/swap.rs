//! Linux swap: partitions and files whose pages nobody reads after a restore.
//!
//! In: a volume, or the first bytes of a file. Out: the range behind the header that may be dropped.
//! Invariant: the header, and with it UUID, label and what `swapon` wants, stays; a hibernated system's
//! memory stays. Must not: trust a signature alone. Source: Linux `include/linux/swap.h`,
//! `kernel/power/swap.c`; what was measured is in GUESTFS.md §2.

use crate::bytes::{label, le32, uuid};
use crate::disk::Disk;
use crate::volume::{Extent, Refused};

/// Page sizes of the systems that Linux runs on. The signature ends the first page.
const PAGE_BYTES: [usize; 5] = [4096, 8192, 16_384, 32_768, 65_536];
/// What is read of a volume's or file's start, and kept of a partition.
pub const HEAD_BYTES: usize = 64 << 10;
const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
/// Version 0, of Linux 2.0: never touched.
const SIGNATURE_OLD: &[u8; 10] = b"SWAP-SPACE";
/// A system sleeps in it: swsusp, uswsusp, old names, TuxOnIce.
const SLEEPING: [&[u8]; 5] =
    [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"];

/// A swap area's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapHeader {
    /// Of the system that made it.
    pub page_bytes: u64,
    /// Bytes of the area, the header's page counted.
    pub length: u64,
    /// Label and UUID, for a person.
    pub identity: String,
}

/// Whether these first bytes have a swap signature of any kind, good or not.
pub fn has_signature(head: &[u8]) -> bool {
    endings(head).any(|(_, end)| {
        end == SIGNATURE
            || end == SIGNATURE_OLD
            || SLEEPING.iter().any(|name| end.starts_with(name))
    })
}

/// The last ten bytes of the first page, for each size of page.
fn endings(head: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    PAGE_BYTES.into_iter().filter_map(|page| Some((page, head.get(page - 10..page)?)))
}

/// Reads the header from the area's first [`HEAD_BYTES`].
///
/// # Errors
/// It is no swap area, a system sleeps in it, or its header is implausible.
pub fn read_header(head: &[u8]) -> Result<SwapHeader, Refused> {
    if endings(head).any(|(_, end)| SLEEPING.iter().any(|name| end.starts_with(name))) {
        return Err(Refused::new("a system sleeps in this swap area (hibernation)"));
    }
    let mut found = endings(head).filter(|(_, end)| *end == SIGNATURE || *end == SIGNATURE_OLD);
    let (page, signature) = found.next().ok_or_else(|| Refused::new("it is no swap area"))?;
    if found.next().is_some() {
        return Err(Refused::new("it has two swap signatures"));
    }
    if signature != SIGNATURE || le32(head, 1024)? != 1 {
        return Err(Refused::new("its swap header is of an unknown version"));
    }
    let last_page = u64::from(le32(head, 1028)?);
    if last_page == 0 {
        return Err(Refused::new("its swap header names no pages"));
    }
    let (page_bytes, label) = (page as u64, label(&head[1052..1068]));
    let label = if label.is_empty() { String::new() } else { format!("{label} ") };
    let identity = format!("{label}{}", uuid(&head[1036..1052]));
    Ok(SwapHeader { page_bytes, length: (last_page + 1) * page_bytes, identity })
}

/// The range of a swap partition that may be dropped, whatever the system was doing.
///
/// # Errors
/// As [`read_header`], or the area is longer than the volume.
pub fn swap_partition(volume: &dyn Disk) -> Result<(SwapHeader, Extent), Refused> {
    if volume.length() < HEAD_BYTES as u64 {
        return Err(Refused::new("it is too small for a swap area"));
    }
    let mut head = vec![0; HEAD_BYTES];
    volume.read_at(0, &mut head)?;
    let header = read_header(&head)?;
    if header.length > volume.length() {
        return Err(Refused::new("its swap header is for a larger volume"));
    }
    let start = HEAD_BYTES as u64;
    let length = header.length.saturating_sub(start);
    Ok((header, Extent { start, length }))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn made(page: u32, length: usize) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(length as u64).unwrap();
        let page = page.to_string();
        let mut command = Command::new("mkswap");
        let output = command.args(["-L", "pages", "-p", &page]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn all_but_the_first_64_kib_of_a_swap_partition_is_dropped() {
        for page in [4096, 16_384, 65_536] {
            let disk = made(page, (4 << 20) + 1000);
            let (header, range) = swap_partition(&disk).unwrap();
            assert_eq!(header.page_bytes, u64::from(page));
            assert!(header.identity.starts_with("pages "), "{}", header.identity);
            assert_eq!(range, Extent { start: 64 << 10, length: (4 << 20) - (64 << 10) });
            assert!(swap_partition(&disk[..3 << 20].to_vec()).is_err(), "cut off");
        }
    }

    #[test]
    fn sleeping_doubtful_and_other_areas_are_kept() {
        for name in SLEEPING {
            let mut disk = made(4096, 1 << 20);
            disk[4086..4086 + name.len()].copy_from_slice(name);
            let refused = swap_partition(&disk).unwrap_err();
            assert!(refused.why.contains("sleeps"), "{refused}");
            assert!(has_signature(&disk[..HEAD_BYTES]));
        }
        let mut two = made(4096, 1 << 20);
        two[16_374..16_384].copy_from_slice(SIGNATURE);
        let mut version = made(4096, 1 << 20);
        version[1024] = 2;
        let mut empty = made(4096, 1 << 20);
        empty[1028..1032].fill(0);
        for disk in [two, version, empty, vec![0; 1 << 20], vec![0; 5000]] {
            swap_partition(&disk).unwrap_err();
        }
    }
}
