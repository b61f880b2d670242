//! Every subformat that qemu-img writes, with holes, odd sizes and writes afterwards.

use gantry_vmdk::stream::{Parser, StreamError};

use crate::tool::{compare, convert, folder, open, raw, run};

const SUBFORMATS: [&str; 5] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
];

/// Sizes around grains (64 KiB) and tables (32 MiB).
const SIZES: [u64; 7] = [
    512,
    65_536,
    65_536 + 512,
    1_000_000 / 512 * 512,
    32 << 20,
    (32 << 20) + 65_536 * 3 - 512,
    (33 << 20) + 1024,
];

#[test]
fn what_qemu_converts_reads_the_same() {
    for (index, size) in SIZES.into_iter().enumerate() {
        let folder = folder();
        let source = raw(folder.path(), "disk.raw", size, 100 + index as u64);
        for subformat in SUBFORMATS {
            println!("{subformat} of {size}");
            let name = format!("{subformat}.vmdk");
            let option = format!("subformat={subformat}");
            convert(folder.path(), &["-O", "vmdk", "-o", &option], "disk.raw", &name);
            let image = open(&folder.path().join(&name));
            compare(&image, &source, size);
            assert!(image.describe().starts_with(subformat), "{}", image.describe());
            assert_eq!(image.flat_extents().is_some(), subformat.ends_with("Flat"));
            assert!(image.changed_since_open().expect("its files").is_none());
        }
    }
}

#[test]
fn what_qemu_writes_afterwards_reads_the_same() {
    for subformat in &SUBFORMATS[..4] {
        let folder = folder();
        let option = format!("subformat={subformat},zeroed_grain=on");
        let option =
            if subformat.ends_with("Flat") { &option[..option.len() - 16] } else { &option };
        let size = "50331648";
        run(
            folder.path(),
            "qemu-img",
            &["create", "-q", "-f", "vmdk", "-o", option, "d.vmdk", size],
        );
        let mut random = fastrand::Rng::with_seed(7);
        let mut script = Vec::new();
        for number in 0..60 {
            let offset = random.u64(..50_331_648 / 512 - 1000) * 512;
            let length = random.u64(1..1000) * 512;
            script.push(match random.u8(..4) {
                0 => format!("write -z {offset} {length}"),
                _ => format!("write -P {} {offset} {length}", number + 1),
            });
        }
        let mut arguments = vec!["-f", "vmdk"];
        for command in &script {
            arguments.extend(["-c", command]);
        }
        arguments.push("d.vmdk");
        run(folder.path(), "qemu-io", &arguments);
        convert(folder.path(), &["-O", "raw"], "d.vmdk", "d.raw");
        compare(&open(&folder.path().join("d.vmdk")), &folder.path().join("d.raw"), 8);
    }
}

#[test]
fn disks_over_two_gigabytes_are_split_and_read_the_same() {
    let folder = folder();
    let size = (5_u64 << 30) + 512 * 3;
    let source = raw(folder.path(), "disk.raw", size, 31);
    for subformat in SUBFORMATS {
        println!("{subformat}");
        let name = format!("{subformat}.vmdk");
        let option = format!("subformat={subformat}");
        convert(folder.path(), &["-O", "vmdk", "-o", &option], "disk.raw", &name);
        let image = open(&folder.path().join(&name));
        if subformat.starts_with("twoGb") {
            assert_eq!(image.files().count(), 4, "a descriptor and three extents");
        }
        compare(&image, &source, size);
    }
}

#[test]
fn a_stream_with_its_tables_in_front_is_for_the_image_reader() {
    let folder = folder();
    raw(folder.path(), "disk.raw", 1 << 20, 5);
    convert(
        folder.path(),
        &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        "disk.raw",
        "s.vmdk",
    );
    let file = std::fs::File::open(folder.path().join("s.vmdk")).expect("a stream");
    let error = Parser::new(file).err().expect("a refusal");
    assert!(matches!(error, StreamError::NotAStream { .. }), "{error}");
}
