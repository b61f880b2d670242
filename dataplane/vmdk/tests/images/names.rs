//! Which files an image may consist of: names that lead away, parts that do not fit, files that change.

use std::os::unix::fs::symlink;
use std::path::Path;

use gantry_vmdk::{Image, OpenOptions, VmdkError};

use crate::deltas::descriptor;
use crate::tool::{folder, open, run};

const NO_PARENT: (u32, Option<(u32, &str)>) = (1, None);

/// A flat disk of one sector, which is all `fill`.
fn flat(folder: &Path, name: &str, fill: u8) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join(format!("{name}-flat.vmdk")), [fill; 512]).expect("data");
    let extent = format!("RW 1 VMFS \"{name}-flat.vmdk\"");
    descriptor(folder, &format!("{name}.vmdk"), "vmfs", NO_PARENT, &extent);
}

/// A child without data of its own on the parent that `hint` names.
fn child(folder: &Path, name: &str, hint: &str) {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut random = fastrand::Rng::with_seed(1);
    let cells = vec![crate::deltas::Cell::Parent];
    let data = crate::deltas::cowd(1, 1, &cells, &mut random);
    std::fs::write(folder.join(format!("{name}-delta.vmdk")), data).expect("data");
    let extent = format!("RW 1 VMFSSPARSE \"{name}-delta.vmdk\"");
    let ids = (2, Some((1, hint)));
    descriptor(folder, &format!("{name}.vmdk"), "vmfsSparse", ids, &extent);
}

fn first_byte(image: &Image) -> u8 {
    let mut byte = [0];
    image.read_at(0, &mut byte).expect("a read");
    byte[0]
}

fn refusal(path: &Path, options: &OpenOptions) -> VmdkError {
    Image::open(path, options).expect_err("a refusal")
}

fn within(root: &Path) -> OpenOptions {
    OpenOptions { root: Some(root.to_owned()), ..OpenOptions::default() }
}

#[test]
fn a_hosts_absolute_name_is_found_beside_the_child_or_on_its_mapped_volume() {
    let folder = folder();
    let (here, other) = (folder.path().join("ds1/vm"), folder.path().join("ds2"));
    flat(&here, "base", 1);
    flat(&other.join("templates"), "base", 2);
    child(&here, "c", "/vmfs/volumes/5f3a-22/templates/base.vmdk");
    assert_eq!(first_byte(&open(&here.join("c.vmdk"))), 1, "by its file name");
    let mut options = within(&folder.path().join("ds1"));
    options.volumes.push(("5f3a-22".into(), other.clone()));
    let image = Image::open(&here.join("c.vmdk"), &options).expect("a mapped volume");
    assert_eq!(first_byte(&image), 2, "on the volume");
    assert!(image.files().any(|(path, _)| path.starts_with(&other)));
    // A volume is a boundary too.
    child(&here, "e", "/vmfs/volumes/5f3a-22/../ds1/vm/base.vmdk");
    let error = refusal(&here.join("e.vmdk"), &options);
    assert!(matches!(error, VmdkError::OutsideDatastore { .. }), "{error}");
}

#[test]
fn names_do_not_leave_the_datastore() {
    let folder = folder();
    let store = folder.path().join("store");
    flat(folder.path(), "secret", 9);
    flat(&store.join("a"), "base", 1);
    child(&store.join("b"), "near", "../a/base.vmdk");
    child(&store.join("b"), "far", "../../secret.vmdk");
    let absolute = folder.path().join("secret.vmdk");
    child(&store.join("b"), "absolute", absolute.to_str().expect("a name"));
    symlink("../../secret.vmdk", store.join("b/link.vmdk")).expect("a link");
    child(&store.join("b"), "linked", "link.vmdk");
    symlink("../../", store.join("b/up")).expect("a link");
    child(&store.join("b"), "linked-folder", "up/secret.vmdk");
    let outside = |name: &str, options: &OpenOptions| {
        let error = refusal(&store.join("b").join(name), options);
        assert!(matches!(error, VmdkError::OutsideDatastore { .. }), "{name}: {error}");
    };
    symlink("../a/base.vmdk", store.join("b/inside.vmdk")).expect("a link");
    symlink("../a/base-flat.vmdk", store.join("b/base-flat.vmdk")).expect("a link");
    let image = Image::open(&store.join("b/inside.vmdk"), &within(&store)).expect("a link inside");
    assert_eq!(first_byte(&image), 1);
    // Within the datastore a sibling folder is fine, but not from the folder of one VM alone.
    let image = Image::open(&store.join("b/near.vmdk"), &within(&store)).expect("a sibling");
    assert_eq!(first_byte(&image), 1);
    outside("near.vmdk", &OpenOptions::default());
    for name in ["far.vmdk", "absolute.vmdk", "linked.vmdk", "linked-folder.vmdk"] {
        outside(name, &within(&store));
    }
    outside("../../secret.vmdk", &within(&store));
    let allowed = OpenOptions { leave_root: true, ..within(&store) };
    for name in ["far.vmdk", "linked-folder.vmdk"] {
        let image = Image::open(&store.join("b").join(name), &allowed).expect(name);
        assert_eq!(first_byte(&image), 9, "{name}");
    }
}

#[test]
fn a_pipe_a_folder_and_a_loop_do_not_hang() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    run(folder.path(), "mkfifo", &["pipe"]);
    std::fs::create_dir(path("folder")).expect("a folder");
    for name in ["pipe", "folder"] {
        descriptor(folder.path(), "d.vmdk", "vmfs", NO_PARENT, &format!("RW 1 VMFS \"{name}\""));
        let error = refusal(&path("d.vmdk"), &OpenOptions::default());
        assert!(error.to_string().contains("no regular file"), "{error}");
    }
    let ids = (1, Some((1, "d.vmdk")));
    descriptor(folder.path(), "d.vmdk", "vmfs", ids, "RW 1 ZERO");
    let error = refusal(&path("d.vmdk"), &OpenOptions::default());
    assert!(matches!(error, VmdkError::ChainTooLong { .. }), "{error}");
    for number in 0..70 {
        let hint = format!("l{}.vmdk", number + 1);
        let ids = (1, Some((1, hint.as_str())));
        descriptor(folder.path(), &format!("l{number}.vmdk"), "vmfs", ids, "RW 1 ZERO");
    }
    let error = refusal(&path("l0.vmdk"), &OpenOptions::default());
    assert!(matches!(error, VmdkError::ChainTooLong { .. }), "{error}");
}

#[test]
fn extents_that_do_not_fit_their_files_are_refused() {
    let folder = folder();
    flat(folder.path(), "x", 1);
    flat(folder.path(), "y", 2);
    std::fs::write(folder.path().join("long"), [3; 2048]).expect("data");
    let refused = |extents: &str, text: &str| {
        descriptor(folder.path(), "d.vmdk", "custom", NO_PARENT, extents);
        let error = refusal(&folder.path().join("d.vmdk"), &OpenOptions::default());
        assert!(error.to_string().contains(text), "{extents}: {error}");
    };
    refused("RW 2 VMFS \"x-flat.vmdk\"", "ends at byte 512");
    refused("RW 1 FLAT \"x-flat.vmdk\" 1", "ends at byte 512");
    refused("RW 1 FLAT \"x-flat.vmdk\" 0\nRW 1 FLAT \"x-flat.vmdk\" 0", "same bytes");
    refused("RW 2 FLAT \"long\" 1\nRW 1 ZERO\nRW 2 FLAT \"long\" 2", "same bytes");
    refused("RW 1 SPARSE \"x-flat.vmdk\"", "does not begin like a VMDK");
    refused("RW 1 SESPARSE \"x.vmdk\"", "another format");
    refused("RW 1 VMFS \"missing\"", "it is missing");
    refused("NOACCESS 1 FLAT \"x-flat.vmdk\" 0", "no access");
    refused("RW 1 VMFSRDM \"x-flat.vmdk\"", "raw device");
    let extents =
        "RW 1 FLAT \"long\" 3\nRW 2 ZERO\nRW 1 VMFS \"y-flat.vmdk\"\nRW 3 FLAT \"long\" 0";
    descriptor(folder.path(), "d.vmdk", "custom", NO_PARENT, extents);
    let image = open(&folder.path().join("d.vmdk"));
    assert_eq!(image.next_data(0).expect("the map"), Some((0, 512)));
    assert_eq!(image.next_data(600).expect("the map"), Some((1536, 7 * 512)));
    assert_eq!(image.next_data(7 * 512).expect("the map"), None);
    let mut disk = vec![0; 7 * 512];
    image.read_at(0, &mut disk).expect("a read");
    let sectors: Vec<u8> = disk.chunks(512).map(|sector| sector[511]).collect();
    assert_eq!(sectors, [3, 0, 0, 2, 3, 3, 3]);
    assert!(image.flat_extents().is_none(), "zeros have no file");
    let error = image.read_at(7 * 512 - 1, &mut [0; 2]).expect_err("the end");
    assert!(matches!(error, VmdkError::OutOfRange { .. }));
}

#[test]
fn parts_of_a_disk_are_not_taken_for_one() {
    let folder = folder();
    flat(folder.path(), "x", 1);
    run(
        folder.path(),
        "qemu-img",
        &["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "s.vmdk", "1M"],
    );
    for (name, text) in [("x-flat.vmdk", "does not begin"), ("s-s001.vmdk", "one extent of a disk")]
    {
        let error = refusal(&folder.path().join(name), &OpenOptions::default());
        assert!(error.to_string().contains(text), "{error}");
    }
    std::fs::write(folder.path().join("empty.vmdk"), []).expect("a file");
    let error = refusal(&folder.path().join("empty.vmdk"), &OpenOptions::default());
    assert!(error.to_string().contains("empty"), "{error}");
}

#[test]
fn a_change_is_noticed_in_any_file_and_by_name() {
    let folder = folder();
    flat(folder.path(), "base", 1);
    child(folder.path(), "c", "base.vmdk");
    let path = |name: &str| folder.path().join(name);
    for name in ["base-flat.vmdk", "c-delta.vmdk"] {
        let image = open(&path("c.vmdk"));
        assert_eq!(image.changed_since_open().expect("its files"), None);
        let data = std::fs::read(path(name)).expect("data");
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(path(name), data).expect("a write");
        assert_eq!(image.changed_since_open().expect("its files"), Some(path(name).as_path()));
    }
    let image = open(&path("c.vmdk"));
    std::fs::copy(path("base.vmdk"), path("new")).expect("a copy");
    std::fs::rename(path("new"), path("base.vmdk")).expect("a rename");
    assert_eq!(image.changed_since_open().expect("its files"), Some(path("base.vmdk").as_path()));
    let image = open(&path("c.vmdk"));
    assert_eq!(image.files().count(), 4);
    std::fs::remove_file(path("base-flat.vmdk")).expect("a removal");
    assert!(image.changed_since_open().expect("its files").is_some());
}

#[test]
fn deltas_in_use_or_of_another_size_are_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let mut random = fastrand::Rng::with_seed(1);
    let cells = vec![crate::deltas::Cell::Parent; 4];
    let clean = crate::deltas::se_sparse(32, &cells, &mut random);
    let refused = |bytes: &[u8], text: &str| {
        std::fs::write(path("d-sesparse.vmdk"), bytes).expect("a delta");
        descriptor(
            folder.path(),
            "d.vmdk",
            "seSparse",
            NO_PARENT,
            "RW 32 SESPARSE \"d-sesparse.vmdk\"",
        );
        match Image::open(&path("d.vmdk"), &OpenOptions::default()) {
            Ok(_) => assert_eq!(text, ""),
            Err(error) => assert!(!text.is_empty() && error.to_string().contains(text), "{error}"),
        }
    };
    refused(&clean, "");
    for (at, value, text) in [
        (512 + 24, 1, "journal has not been replayed"),
        (512, 0, "cafecafe"),
        (5 * 8, 1, "flags that are not known"),
        (400, 1, "goes on where none is known"),
        (2 * 8, 24, "24 sectors, where"),
        (3 * 8, 16, "not known"),
        (16 * 8, 1 << 40, "its grain directory"),
    ] {
        let mut bytes = clean.clone();
        bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        refused(&bytes, text);
    }
}

#[test]
fn a_compressed_grain_must_be_the_one_that_its_table_means() {
    let folder = folder();
    let mut data = vec![1; 65_536];
    data.resize(131_072, 2);
    std::fs::write(folder.path().join("d.raw"), data).expect("data");
    let option = "subformat=streamOptimized";
    crate::tool::convert(folder.path(), &["-O", "vmdk", "-o", option], "d.raw", "d.vmdk");
    let path = folder.path().join("d.vmdk");
    let mut bytes = std::fs::read(&path).expect("an image");
    let sector = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
    };
    let table = sector(&bytes, sector(&bytes, 56) * 512) * 512;
    let (first, second) = bytes[table..table + 8].split_at_mut(4);
    first.swap_with_slice(second);
    std::fs::write(&path, bytes).expect("an image");
    let error = open(&path).read_at(0, &mut [0; 512]).expect_err("another grain");
    assert!(error.to_string().contains("its marker is of sector 128"), "{error}");
}
