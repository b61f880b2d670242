//! A small disk as a Linux guest has it, made by the field's own tools.
//!
//! In: a folder. Out: a raw image with partitions, swap and a root file system.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::images;
use crate::site::Site;

const MIB: u64 = 1 << 20;
/// Of the disk.
const DISK_BYTES: u64 = 192 * MIB;
/// First byte and bytes of the swap partition.
pub const SWAP: (u64, u64) = (MIB, 32 * MIB);
/// First byte and bytes of the root file system.
pub const ROOT: (u64, u64) = (33 * MIB, 128 * MIB);

/// Runs a program that must succeed; what it printed.
pub fn run(program: &str, arguments: &[&str], input: Option<&str>) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    if let Some(text) = input {
        let mut stdin = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut stdin, text.as_bytes()).expect("it reads");
    }
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A GPT disk with swap and an ext4 with a file of 40 MiB and 60 of a few bytes. The second is how many bytes of the file system are free.
pub fn disk(site: &Site) -> (PathBuf, u64) {
    let tree = site.scratch.join("tree");
    std::fs::create_dir_all(tree.join("cache")).expect("a folder");
    images::noise_disk(&tree.join("cache/video.iso"), 40 * MIB, 3);
    for number in 0..60 {
        std::fs::write(tree.join(format!("file-{number}")), "text").expect("writable");
    }
    let [swap, root] = ["swap", "root"].map(|name| site.scratch.join(name));
    images::blank(&swap, SWAP.1);
    images::blank(&root, ROOT.1);
    let text = |path: &Path| path.display().to_string();
    run("mkswap", &["--label", "swap", &text(&swap)], None);
    run(
        "mke2fs",
        &["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root", "-d", &text(&tree), &text(&root)],
        None,
    );
    let facts = run("dumpe2fs", &["-h", &text(&root)], None);
    let fact = |name: &str| {
        let line = facts.lines().find(|line| line.starts_with(name)).expect("dumpe2fs tells it");
        line.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    let free = fact("Free blocks:") * fact("Block size:");
    let path = site.scratch.join("disk.raw");
    images::blank(&path, DISK_BYTES);
    let sectors = |(start, length): (u64, u64)| (start / 512, length / 512);
    let ((a, b), (c, d)) = (sectors(SWAP), sectors(ROOT));
    let table = format!("label: gpt\nstart={a}, size={b}, type=S\nstart={c}, size={d}, type=L\n");
    run("sfdisk", &["--quiet", &text(&path)], Some(&table));
    for (part, (start, _)) in [(&swap, SWAP), (&root, ROOT)] {
        images::overwrite(&path, start, &std::fs::read(part).expect("readable"));
    }
    (path, free)
}
