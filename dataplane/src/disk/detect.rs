//! Whether a file is a VMDK, by its first bytes.
//!
//! In: an open file's beginning, its name, its size. Out: what it is taken for, with the reason for
//! the session log. The bytes of a raw disk are its guest's, who may write the beginning of a VMDK
//! there so that other files are read in its place: content alone is never enough, and where name
//! and content disagree a person must say.

use std::path::Path;

/// Bytes that are looked at.
pub(super) const LOOK_BYTES: usize = 512;
/// A descriptor is a short text; a disk is not so small.
const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;

/// What a file is taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// Its bytes are the disk's.
    Raw(Option<&'static str>),
    /// A VMDK.
    Vmdk,
    /// Nobody can tell.
    Unclear(&'static str),
}

/// What a file of this name and size with this beginning is taken for.
pub(super) fn taken_for(path: &Path, size_bytes: u64, start: &[u8]) -> Taken {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let is_named = name.ends_with(".vmdk");
    let is_raw_part =
        ["-flat.vmdk", "-rdm.vmdk", "-rdmp.vmdk"].iter().any(|end| name.ends_with(end));
    match begins_like_vmdk(size_bytes, start) {
        true if is_raw_part => Taken::Unclear(
            "its name is that of a VMDK's raw part, but it begins like a VMDK itself (its guest may \
             have written that)",
        ),
        true if is_named => Taken::Vmdk,
        true => Taken::Unclear(
            "it begins like a VMDK but is not named .vmdk (its guest may have written that)",
        ),
        false if is_named => Taken::Raw(Some("taken for a raw image: its content is no VMDK's")),
        false => Taken::Raw(None),
    }
}

/// Whether it begins like one.
fn begins_like_vmdk(size_bytes: u64, start: &[u8]) -> bool {
    const SE_SPARSE: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();
    let magics: [&[u8]; 3] = [b"KDMV", b"COWD", &SE_SPARSE];
    if magics.iter().any(|magic| start.starts_with(magic)) {
        return true;
    }
    let text = String::from_utf8_lossy(start);
    let is_descriptor = text.trim_start().to_ascii_lowercase().starts_with("# disk descriptorfile");
    is_descriptor && size_bytes <= DESCRIPTOR_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::{Taken, taken_for};
    use std::path::Path;

    #[test]
    fn name_and_content_must_agree() {
        let text = b"# Disk DescriptorFile\nversion=1\n";
        let taken = |name: &str, size, start: &[u8]| taken_for(Path::new(name), size, start);
        assert!(matches!(taken("/a/b.vmdk", 500, text), Taken::Vmdk));
        assert!(matches!(taken("/a/B.VMDK", 1 << 30, b"KDMV1234"), Taken::Vmdk));
        assert!(matches!(taken("b.vmdk", 1 << 30, b"COWD"), Taken::Vmdk));
        assert_eq!(taken("disk.raw", 1 << 30, b"\xeb\x63"), Taken::Raw(None));
        assert!(matches!(taken("x-flat.vmdk", 1 << 30, b"\0\0"), Taken::Raw(Some(_))));
        assert!(matches!(taken("disk.raw", 1 << 30, b"KDMV"), Taken::Unclear(_)));
        assert!(matches!(taken("disk", 500, text), Taken::Unclear(_)));
        assert!(matches!(taken("x-flat.vmdk", 1 << 30, b"KDMV"), Taken::Unclear(_)));
        // A disk's first sector is its guest's: a large file is no descriptor.
        assert!(matches!(taken("x.vmdk", 1 << 30, text), Taken::Raw(_)));
    }
}
