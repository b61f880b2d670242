//! Writes the descriptor of a link: the text file that names its extent and its parent.
//!
//! In: a link and its disk. Out: the text, in the order and wording of ESXi's own. It is rendered
//! from the state alone, so it can be written again at any time. It does no I/O.

use std::fmt::Write;

use super::sparse::{SECTOR_BYTES, SparseFormat};
use super::state::{DiskState, LinkKind, LinkState};

/// The content id that says "no parent".
const NO_PARENT: u32 = 0xffff_ffff;

/// The descriptor of `link`, whose parent (if any) is `parent`.
pub(super) fn render(disk: &DiskState, link: &LinkState, parent: Option<&LinkState>) -> String {
    let (create_type, extent_type) = match link.kind {
        LinkKind::Flat => ("vmfs", "VMFS"),
        LinkKind::Delta(SparseFormat::Cowd) => ("vmfsSparse", "VMFSSPARSE"),
        LinkKind::Delta(SparseFormat::SeSparse) => ("seSparse", "SESPARSE"),
    };
    let parent_cid = parent.map_or(NO_PARENT, |p| p.cid);
    let sectors = disk.capacity_bytes / SECTOR_BYTES;
    let extent = link.extent_file();
    let mut text = format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID={:08x}\nparentCID={parent_cid:08x}\n\
         createType=\"{create_type}\"\n",
        link.cid
    );
    if let Some(parent) = parent {
        let _ = writeln!(text, "parentFileNameHint=\"{}\"", parent.file.file_name());
    }
    let _ = write!(
        text,
        "# Extent description\nRW {sectors} {extent_type} \"{}\"\n\n",
        extent.file_name()
    );
    if link.tracked {
        let map = link.map_file();
        let _ = write!(text, "# Change Tracking File\nchangeTrackPath=\"{}\"\n\n", map.file_name());
    }
    text.push_str("# The Disk Data Base\n#DDB\n\n");
    if parent.is_none() {
        let cylinders = (sectors / (255 * 63)).clamp(1, 65_535);
        let _ = write!(
            text,
            "ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\n"
        );
        if disk.thin {
            text.push_str("ddb.thinProvisioned = \"1\"\n");
        }
        let _ = writeln!(text, "ddb.uuid = \"{}\"", spaced_uuid(&disk.uuid));
        text.push_str("ddb.virtualHWVersion = \"19\"\n");
    }
    let digits: String = disk.uuid.chars().filter(char::is_ascii_hexdigit).take(24).collect();
    let _ = writeln!(text, "ddb.longContentID = \"{digits}{:08x}\"", link.cid);
    text
}

/// `6000C29a-…` as descriptors write it: `60 00 C2 9a …-…`, eight bytes on each side of a dash.
fn spaced_uuid(uuid: &str) -> String {
    let digits: Vec<char> = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    let bytes: Vec<String> = digits.chunks(2).map(|pair| pair.iter().collect()).collect();
    match bytes.split_at_checked(8) {
        Some((left, right)) => format!("{}-{}", left.join(" "), right.join(" ")),
        None => bytes.join(" "),
    }
}
