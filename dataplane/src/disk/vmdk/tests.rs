//! Images that qemu-img made, of each subformat that it writes.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Vmdk;
use crate::disk::test_reader::read_all;
use crate::disk::{Disk, DiskError};
use gantry_common::source::{SourceFormat, SourceSpec};

const MIB: u64 = 1 << 20;
const SUBFORMATS: [&str; 5] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
];

/// Converts; nothing where qemu-img is not installed.
fn convert(from: &Path, to: &Path, options: &str) -> Option<()> {
    let convert = ["convert", "-f", "raw", "-O", "vmdk", "-o", options];
    match Command::new("qemu-img").args(convert).arg(from).arg(to).output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(())
        }
        Err(error) => {
            eprintln!("skipped: qemu-img: {error}");
            None
        }
    }
}

fn bytes(len: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(9);
    let mut bytes = vec![0; len as usize];
    for piece in bytes.chunks_mut(300_000).step_by(3) {
        random.fill(piece);
    }
    bytes
}

fn open(path: &Path, format: SourceFormat) -> Result<Disk, DiskError> {
    Disk::open_source(&SourceSpec::Path { path: path.to_owned(), format })
}

#[test]
fn every_subformat_of_qemu_is_the_disk_that_was_converted() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    let content = bytes(9 * MIB);
    fs::write(&raw, &content).unwrap();
    for subformat in SUBFORMATS {
        let path = dir.path().join(format!("{subformat}.vmdk"));
        let Some(()) = convert(&raw, &path, &format!("subformat={subformat}")) else { return };
        let disk = open(&path, SourceFormat::Auto).unwrap();
        assert_eq!(disk.size_bytes(), content.len() as u64);
        assert!(disk.notes()[0].contains("VMDK"), "{:?}", disk.notes());
        assert_eq!(disk.remote().is_none(), subformat.contains("Flat"), "{subformat}");
        match disk.remote() {
            Some(source) => {
                let (read, read_bytes) = read_all(source, 256 << 10, 8).unwrap();
                assert!(read == content, "{subformat}");
                assert!(read_bytes < content.len() as u64, "holes were read");
            }
            None => assert!(by_place(&disk) == content, "{subformat}"),
        }
        assert_eq!(disk.changed_since_open().unwrap(), None);
        assert_eq!(disk.fingerprint(), open(&path, SourceFormat::Vmdk).unwrap().fingerprint());
    }
}

/// The whole disk through places and descriptors, as the readers take it.
fn by_place(disk: &Disk) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; disk.size_bytes() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let place = disk.place(at as u64);
        let len = (bytes.len() - at).min(place.len as usize).min(100_000);
        let file = fs::File::from(disk.descriptor(place.file).unwrap().unwrap());
        // The descriptor may be one for O_DIRECT, which this buffer is not fit for.
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).unwrap();
        file.read_exact_at(&mut bytes[at..at + len], place.offset).unwrap();
        at += len;
    }
    bytes
}

#[test]
fn extents_of_many_files_are_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    // Extents as small and as crooked as a descriptor may have them.
    let parts = [(1, 7u64), (2, 5), (3, 2040), (4, 1)];
    let mut descriptor = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
                          createType=\"twoGbMaxExtentFlat\"\n"
        .to_owned();
    let mut expected = Vec::new();
    for (number, sectors) in parts {
        let content = bytes(sectors * 512);
        fs::write(dir.path().join(format!("d-f{number}.vmdk")), &content).unwrap();
        descriptor += &format!("RW {sectors} FLAT \"d-f{number}.vmdk\" 0\n");
        expected.extend(content);
    }
    let path = dir.path().join("d.vmdk");
    fs::write(&path, &descriptor).unwrap();
    let Ok(Vmdk::Flat(flat)) = Vmdk::open(&path, true) else { panic!("it is flat") };
    assert_eq!(flat.place(0).len, 7 * 512);
    assert_eq!((flat.place(7 * 512).file, flat.place(7 * 512 + 1).offset), (1, 1));
    let disk = open(&path, SourceFormat::Auto).unwrap();
    assert!(by_place(&disk) == expected);
    fs::write(dir.path().join("d-f2.vmdk"), vec![1; 5 * 512]).unwrap();
    assert!(disk.changed_since_open().unwrap().unwrap().contains("d-f2.vmdk"));
}

#[test]
fn a_descriptor_is_never_backed_up_as_a_raw_disk_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let text = "# Disk DescriptorFile\nversion=1\n";
    let path = dir.path().join("disk.raw");
    fs::write(&path, text).unwrap();
    let error = open(&path, SourceFormat::Auto).unwrap_err().to_string();
    assert!(error.contains("--source-format"), "{error}");
    assert_eq!(open(&path, SourceFormat::Raw).unwrap().size_bytes(), text.len() as u64);
    let flat = dir.path().join("x-flat.vmdk");
    fs::write(&flat, [3; 4096]).unwrap();
    let disk = open(&flat, SourceFormat::Auto).unwrap();
    assert!(disk.notes().iter().any(|note| note.contains("raw")), "{:?}", disk.notes());
}
