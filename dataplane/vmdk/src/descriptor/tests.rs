//! Descriptors as products write them, and as nobody should.

use super::{Descriptor, ExtentKind};

const HEAD: &str = "# Disk DescriptorFile\nversion=1\nCID=0c3fc350\nparentCID=ffffffff\n\
                    createType=\"vmfs\"\n";

fn with(rest: &str) -> Result<Descriptor, (usize, String)> {
    Descriptor::parse(format!("{HEAD}{rest}").as_bytes())
}

fn why(rest: &str) -> String {
    let (line, why) = with(rest).expect_err(rest);
    format!("{line}: {why}")
}

#[test]
fn a_hosts_descriptor_is_understood() {
    let text = "# Disk DescriptorFile\r\nversion=4\r\nencoding=\"UTF-8\"\r\nCID=75748046\r\n\
        parentCID=1a2b3c4d\r\nisNativeSnapshot=\"no\"\r\ncreateType=\"seSparse\"\r\n\
        parentFileNameHint=\"Größe.vmdk\"\r\n\r\n# Extent description\r\n\
        RW 83886080 SESPARSE \"Größe-000001-sesparse.vmdk\"\r\n\r\n# The Disk Data Base \r\n#DDB\r\n\r\n\
        ddb.longContentID = \"fcf1eb0bcf4258028daa64eb75748046\"\r\n\
        ddb.uuid = \"60 00 C2 94 44 3e 50 05-5c d6 e2 4f be 78 09 08\"\r\n";
    let found = Descriptor::parse(text.as_bytes()).expect("a descriptor");
    assert_eq!((found.content_id, found.parent_id), (0x7574_8046, Some(0x1a2b_3c4d)));
    assert_eq!(found.parent_name.as_deref(), Some("Größe.vmdk"));
    assert_eq!(found.uuid.as_deref(), Some("6000c294-443e-5005-5cd6-e24fbe780908"));
    assert_eq!(found.long_content_id.as_deref(), Some("fcf1eb0bcf4258028daa64eb75748046"));
    assert_eq!(found.size_bytes(), 40 << 30);
    assert_eq!(found.extents[0].kind, ExtentKind::SeSparse);
    assert_eq!(found.extents[0].file_name, "Größe-000001-sesparse.vmdk");
}

#[test]
fn keys_and_types_are_read_whatever_their_case() {
    let text = "VERSION=1\ncid=1\nPARENTCID=FFFFFFFF\ncreatetype=\"twoGbMaxExtentFlat\"\n\
                rw 128 flat \"a b.vmdk\" 64\nRDONLY 1 ZERO\n";
    let found = Descriptor::parse(text.as_bytes()).expect("a descriptor");
    assert_eq!(found.parent_id, None);
    assert_eq!(
        (found.extents[0].file_name.as_str(), found.extents[0].file_sector),
        ("a b.vmdk", 64)
    );
    assert_eq!(found.extents[1].kind, ExtentKind::Zero);
}

#[test]
fn file_names_are_decoded_as_the_descriptor_says() {
    for (label, bytes) in [
        ("windows-1252", b"Gr\xf6\xdfe.vmdk".as_slice()),
        ("ISO-8859-1", b"Gr\xf6\xdfe.vmdk"),
        ("UTF-8", "Größe.vmdk".as_bytes()),
    ] {
        let mut text = format!("{HEAD}encoding=\"{label}\"\nRW 1 VMFS \"").into_bytes();
        text.extend_from_slice(bytes);
        text.extend_from_slice(b"\"\n");
        let found = Descriptor::parse(&text).expect(label);
        assert_eq!(found.extents[0].file_name, "Größe.vmdk", "{label}");
    }
    let mut text = format!("{HEAD}encoding=\"GBK\"\nRW 1 VMFS \"").into_bytes();
    text.extend_from_slice(b"\xb4\xc5\xc5\xcc.vmdk\"\n");
    assert_eq!(Descriptor::parse(&text).expect("GBK").extents[0].file_name, "磁盘.vmdk");

    let mut wrong = format!("{HEAD}encoding=\"UTF-8\"\nRW 1 VMFS \"").into_bytes();
    wrong.extend_from_slice(b"Gr\xf6\xdfe.vmdk\"\n");
    assert!(Descriptor::parse(&wrong).expect_err("not UTF-8").1.contains("UTF-8"));
    for label in ["klingon", "UTF-16LE"] {
        let text = format!("{HEAD}encoding=\"{label}\"\nRW 1 VMFS \"ö\"\n");
        assert!(Descriptor::parse(text.as_bytes()).expect_err(label).1.contains("not known"));
    }
}

#[test]
fn raw_devices_encryption_and_missing_access_are_obstacles_with_a_name() {
    let obstacle = |rest: &str| with(rest).expect(rest).obstacle.expect(rest);
    assert!(obstacle("RW 1 VMFSRDM \"x-rdm.vmdk\"\n").contains("raw device"));
    assert!(obstacle("RW 1 VMFSRAW \"/vmfs/devices/disks/naa.1\"\n").contains("raw device"));
    assert!(obstacle("NOACCESS 1 FLAT \"x-flat.vmdk\" 0\n").contains("no access"));
    assert!(obstacle("RW 1 VSANSPARSE \"x\"\n").contains("vSAN"));
    assert!(obstacle("RW 1 VMFS \"x\"\nddb.iofilters = \"vmwarevmcrypt\"\n").contains("encrypted"));
    assert!(obstacle("RW 1 VMFS \"x\"\nencryptionKeys=\"vmware:key\"\n").contains("encrypted"));
    let text = "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfsRawDeviceMap\"\n";
    let found = Descriptor::parse(text.as_bytes()).expect("a descriptor");
    assert!(found.obstacle.expect("an obstacle").contains("raw device"));
}

#[test]
fn what_makes_no_sense_is_refused_by_line() {
    assert_eq!(why("RW 0 VMFS \"x\"\n"), "6: an extent of no sectors");
    assert!(why("RW -1 VMFS \"x\"\n").contains("no number of sectors"));
    assert!(why("RW 18446744073709551616 VMFS \"x\"\n").contains("no number of sectors"));
    assert!(why("RW 18446744073709551615 VMFS \"x\"\n").contains("larger than"));
    assert!(why("RW 1 FLAT \"x\" 18446744073709551615\n").contains("not possible"));
    assert!(why("RW 1 PIZZA \"x\"\n").contains("PIZZA"));
    assert!(why("RW 1 FLAT x 0\n").contains("file name"));
    assert!(why("RW 1 FLAT \"x 0\n").contains("do not close"));
    assert!(why("RW 1 FLAT \"\" 0\n").contains("empty file name"));
    assert!(why("RW\n").contains("number of sectors"));
    assert!(why("RW 1 VMFS \"x\"\nCID=1\n").contains("7: cid stands twice"));
    assert!(why("hello\n").contains("neither a setting nor an extent"));
    assert!(why("").contains("no extents"));
    assert!(why("parentFileNameHint=\"p.vmdk\"\nRW 1 VMFS \"x\"\n").contains("there is none"));
    assert!(why(&format!("RW 1 VMFS \"{}\"\n", "x".repeat(5000))).contains("longer than"));
    let no_hint = "version=1\nCID=1\nparentCID=2\ncreateType=\"vmfs\"\nRW 1 VMFS \"x\"\n";
    let error = Descriptor::parse(no_hint.as_bytes()).expect_err("no hint");
    assert!(error.1.contains("does not name its parent"));
    for (from, to) in
        [("version=1\n", ""), ("0c3fc350", "10c3fc350"), ("0c3fc350", "+1"), ("=1", "=9")]
    {
        let text = format!("{HEAD}RW 1 VMFS \"x\"\n").replace(from, to);
        Descriptor::parse(text.as_bytes()).expect_err(to);
    }
}

#[test]
fn a_descriptor_of_a_thousand_million_extents_ends_at_the_bound() {
    let lines = "RW 1 VMFS \"x\"\n".repeat(100_000);
    assert!(why(&lines).contains("more than 4096 extents"));
}

/// QEMU writes a shorter content id over a longer one and leaves the end of the old text.
#[test]
fn stale_bytes_behind_the_end_are_ignored_and_lost_lines_are_not() {
    let mut text = format!("{HEAD}RW 1 VMFS \"x\"\n").into_bytes();
    text.extend_from_slice(b"\x0047\"\n");
    text.resize(10_240, 0);
    Descriptor::parse(&text).expect("a stale end");
    let mut text = format!("{HEAD}RW 1 VMFS \"x\"\n").into_bytes();
    text.extend_from_slice(&[0; 512]);
    text.extend_from_slice(b"RW 1 VMFS \"y\"\n");
    Descriptor::parse(&text).expect_err("a hole in the middle");
}
