//! Chains of deltas: qemu's children, and those of hosts, on parents of every kind.

use std::path::Path;

use gantry_vmdk::{Image, OpenOptions, VmdkError};

use crate::deltas::{Cell, cells, cowd, descriptor, lay_over, se_sparse};
use crate::tool::{compare, convert, folder, open, raw, run};

/// Random writes with qemu-io; the image must have `size` bytes at least.
fn scribble(folder: &Path, name: &str, size: u64, random: &mut fastrand::Rng) {
    let mut script = Vec::new();
    for _ in 0..25 {
        let length = random.u64(1..400).min(size / 512);
        let offset = random.u64(..=size / 512 - length) * 512;
        script.push(match random.u8(..4) {
            0 => format!("write -z {offset} {}", length * 512),
            _ => format!("write -P {} {offset} {}", random.u8(1..), length * 512),
        });
    }
    let mut arguments = vec!["-f", "vmdk"];
    script.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(name);
    run(folder, "qemu-io", &arguments);
}

#[test]
fn qemus_children_read_the_same_also_of_another_size() {
    let mib = 1_u64 << 20;
    let cases = [
        ("monolithicSparse", [40 * mib, 40 * mib, 40 * mib]),
        ("monolithicFlat", [40 * mib, 33 * mib + 512, 70 * mib + 1536]),
        ("twoGbMaxExtentSparse", [8 * mib, 40 * mib, 3 * mib]),
        ("streamOptimized", [8 * mib, 8 * mib, 12 * mib]),
    ];
    for (number, (base, sizes)) in cases.into_iter().enumerate() {
        println!("{base} {sizes:?}");
        let folder = folder();
        let mut random = fastrand::Rng::with_seed(number as u64);
        raw(folder.path(), "base.raw", sizes[0], number as u64);
        let option = format!("subformat={base}");
        convert(folder.path(), &["-O", "vmdk", "-o", &option], "base.raw", "l0.vmdk");
        for level in 1..3 {
            let (parent, child) = (format!("l{}.vmdk", level - 1), format!("l{level}.vmdk"));
            let kind = ["monolithicSparse", "twoGbMaxExtentSparse"][(level + number) % 2];
            let option = format!("subformat={kind},zeroed_grain=on");
            let create = ["create", "-q", "-f", "vmdk", "-o", &option, "-F", "vmdk", "-b", &parent];
            let size = sizes[level].to_string();
            run(folder.path(), "qemu-img", &[&create[..], &[&child, &size]].concat());
            scribble(folder.path(), &child, sizes[level], &mut random);
            convert(folder.path(), &["-O", "raw"], &child, "all.raw");
            let image = open(&folder.path().join(&child));
            compare(&image, &folder.path().join("all.raw"), level as u64);
            assert!(
                image.describe().contains(&format!("{} links", level + 1)),
                "{}",
                image.describe()
            );
            assert!(image.flat_extents().is_none());
        }
    }
}

/// A vmfs flat base with random data, and its contents.
fn flat_base(folder: &Path, size: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut disk = vec![0; size];
    for _ in 0..30 {
        let length = random.usize(1..100_000).min(size);
        let place = random.usize(..=size - length);
        random.fill(&mut disk[place..place + length]);
    }
    std::fs::write(folder.join("vm-flat.vmdk"), &disk).expect("flat data");
    let extent = format!("RW {} VMFS \"vm-flat.vmdk\"", size / 512);
    descriptor(folder, "vm.vmdk", "vmfs", (0x100, None), &extent);
    disk
}

fn check_delta(folder: &Path, name: &str, disk: &[u8], seed: u64) {
    std::fs::write(folder.join("model.raw"), disk).expect("the model");
    convert(folder, &["-f", "vmdk", "-O", "raw"], name, "qemu.raw");
    run(folder, "cmp", &["model.raw", "qemu.raw"]);
    compare(&open(&folder.join(name)), &folder.join("model.raw"), seed);
}

#[test]
fn cowd_deltas_read_as_qemu_reads_them() {
    for (seed, (grain, sectors)) in
        [(1, 20_480), (1, 4096 * 3 + 5), (8, 70_003), (16, 140_000)].into_iter().enumerate()
    {
        println!("seed {seed}");
        let folder = folder();
        let mut random = fastrand::Rng::with_seed(seed as u64);
        let mut disk = flat_base(folder.path(), sectors * 512, &mut random);
        let mut parent = "vm.vmdk".to_owned();
        for level in 1..=if sectors > 100_000 { 1 } else { 3_u32 } {
            let cells = cells(sectors.div_ceil(grain), grain * 512, false, &mut random);
            let (name, data) = (format!("vm-{level:06}.vmdk"), format!("vm-{level:06}-delta.vmdk"));
            let bytes = cowd(sectors as u32, grain as u32, &cells, &mut random);
            std::fs::write(folder.path().join(&data), bytes).expect("a delta");
            let ids = (0x100 + level, Some((0x0ff + level, parent.as_str())));
            let extent = format!("RW {sectors} VMFSSPARSE \"{data}\"");
            descriptor(folder.path(), &name, "vmfsSparse", ids, &extent);
            lay_over(&mut disk, &cells, grain * 512);
            check_delta(folder.path(), &name, &disk, seed as u64);
            parent = name;
        }
    }
}

#[test]
fn se_sparse_deltas_read_as_qemu_reads_them() {
    for (seed, grains) in [17_usize, 4096, 13_001].into_iter().enumerate() {
        println!("seed {seed}");
        let folder = folder();
        let mut random = fastrand::Rng::with_seed(seed as u64);
        let mut disk = flat_base(folder.path(), grains * 4096, &mut random);
        let mut parent = "vm.vmdk".to_owned();
        for level in 1..=4_u32 {
            let cells = cells(grains, 4096, true, &mut random);
            let (name, data) =
                (format!("vm-{level:06}.vmdk"), format!("vm-{level:06}-sesparse.vmdk"));
            let bytes = se_sparse(grains as u64 * 8, &cells, &mut random);
            std::fs::write(folder.path().join(&data), bytes).expect("a delta");
            let ids = (0x100 + level, Some((0x0ff + level, parent.as_str())));
            let extent = format!("RW {} SESPARSE \"{data}\"", grains * 8);
            descriptor(folder.path(), &name, "seSparse", ids, &extent);
            lay_over(&mut disk, &cells, 4096);
            check_delta(folder.path(), &name, &disk, seed as u64);
            parent = name;
        }
    }
}

#[test]
fn a_parent_that_was_written_afterwards_is_refused_by_name() {
    let folder = folder();
    run(folder.path(), "qemu-img", &["create", "-q", "-f", "vmdk", "p.vmdk", "1M"]);
    let create = ["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "p.vmdk", "c.vmdk"];
    run(folder.path(), "qemu-img", &create);
    open(&folder.path().join("c.vmdk"));
    run(folder.path(), "qemu-io", &["-f", "vmdk", "-c", "write -P 1 0 64k", "p.vmdk"]);
    let error = Image::open(&folder.path().join("c.vmdk"), &OpenOptions::default());
    let error = error.expect_err("a mismatch");
    let VmdkError::ParentMismatch { child, parent, expected, found } = &error else {
        panic!("{error}")
    };
    assert!(child.ends_with("c.vmdk") && parent.ends_with("p.vmdk") && expected != found);
}

#[test]
fn a_delta_without_its_descriptor_is_opened_only_on_demand() {
    let folder = folder();
    let mut random = fastrand::Rng::with_seed(3);
    let cells = cells(9000, 4096, true, &mut random);
    for (name, bytes) in [
        ("s.vmdk", se_sparse(72_000, &cells, &mut random)),
        ("d.vmdk", {
            let only_data = |cell: &Cell| match cell {
                Cell::Data(data) => Cell::Data(data.clone()),
                _ => Cell::Parent,
            };
            let cells: Vec<Cell> = cells.iter().map(only_data).collect();
            cowd(72_000, 8, &cells, &mut random)
        }),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a delta");
        let error = Image::open(&path, &OpenOptions::default()).expect_err("no descriptor");
        assert!(matches!(error, VmdkError::NotADisk { .. }), "{error}");
        let options = OpenOptions { bare_delta: true, ..OpenOptions::default() };
        let image = Image::open(&path, &options).expect("a bare delta");
        let mut disk = vec![0; 9000 * 4096];
        lay_over(&mut disk, &cells, 4096);
        std::fs::write(folder.path().join("model.raw"), disk).expect("the model");
        compare(&image, &folder.path().join("model.raw"), 1);
    }
}
