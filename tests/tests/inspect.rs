//! `gantry-mover inspect` on disks of several kinds: the same disk is the same, whatever it is read by, and
//! what cannot be understood is copied whole.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_tests::images;
use gantry_tests::servers::DiskServer;
use gantry_tests::site::Site;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 192 * MIB;
const SWAP: (u64, u64) = (MIB, 32 * MIB);
const ROOT: (u64, u64) = (33 * MIB, 128 * MIB);

fn run(program: &str, arguments: &[&str], input: Option<&str>) -> String {
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

/// Swap and an ext4 with a file of 40 MiB and 60 of a few bytes.
fn disk(site: &Site) -> (PathBuf, u64) {
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

fn inspect(site: &Site, source: &str, more: &[&str]) -> Value {
    let mut arguments = vec!["inspect", source, "--json"];
    arguments.extend(more);
    site.run(&arguments).ok().json()
}

#[test]
fn a_disk_is_the_same_whatever_it_is_read_by() {
    let site = Site::new();
    let (path, free) = disk(&site);
    let text = path.display().to_string();
    let found = inspect(&site, &text, &[]);
    assert_eq!(found["table"], "gpt", "{found:#}");
    let volumes = found["volumes"].as_array().expect("a list");
    assert_eq!((volumes.len(), &volumes[1]["holds"]), (2, &Value::from("ext4")), "{found:#}");
    let bytes = |value: &Value, reason: &str| value["bytes"][reason].as_u64().unwrap_or(0);
    let swap = bytes(&found, "swap");
    assert!(swap > SWAP.1 * 9 / 10 && swap < SWAP.1, "the header stays: {swap}");
    let deleted = bytes(&found, "deleted");
    assert!(deleted <= free && deleted > free * 9 / 10, "{deleted} of {free} free bytes");
    assert_eq!(bytes(&found, "excluded"), 0);

    let excluded = inspect(&site, &text, &["--state", "off", "--exclude-file", "*.iso"]);
    let iso = bytes(&excluded, "excluded");
    assert!(iso > 39 * MIB && iso <= 40 * MIB, "{excluded:#}");
    let shown = site.run(&["inspect", &text, "--state", "off", "--exclude-file", "*.iso"]).ok();
    for word in ["partition table: gpt", "deleted blocks", "/cache/video.iso", "in all"] {
        assert!(shown.out.contains(word), "{word}: {}", shown.out);
    }

    let vmdk = site.scratch.join("disk.vmdk").display().to_string();
    let flat = "subformat=monolithicFlat";
    run("qemu-img", &["convert", "-q", "-O", "vmdk", "-o", flat, &text, &vmdk], None);
    let sparse = site.scratch.join("sparse.vmdk").display().to_string();
    run("qemu-img", &["convert", "-q", "-O", "vmdk", &text, &sparse], None);
    let server = DiskServer::qemu(site.scratch.path(), "disk", "raw", &path);
    for source in [vmdk, sparse, server.url()] {
        let other = inspect(&site, &source, &[]);
        assert_eq!(other["map"], found["map"], "{source}");
        assert_eq!(other["volumes"], found["volumes"], "{source}");
    }
}

#[test]
fn what_cannot_be_understood_is_copied_whole() {
    let site = Site::new();
    let noise = site.scratch.join("noise.raw");
    images::noise_disk(&noise, 8 * MIB, 4);
    let found = inspect(&site, &noise.display().to_string(), &[]);
    assert_eq!(found["bytes"], serde_json::json!({}), "{found:#}");
    let absent = site.scratch.join("absent").display().to_string();
    assert!(!site.run(&["inspect", &absent]).status.success());
    let bad = site.run(&["inspect", &noise.display().to_string(), "--exclude-file", ""]);
    assert!(!bad.status.success(), "{}", bad.out);
    // A root file system whose superblock says nonsense.
    let (path, _) = disk(&site);
    images::flip(&path, ROOT.0 + 1024 + 0x18, 4);
    let found = inspect(&site, &path.display().to_string(), &[]);
    assert!(found["bytes"]["deleted"].is_null(), "{found:#}");
    assert!(found["bytes"]["swap"].as_u64().is_some_and(|bytes| bytes > 0), "{found:#}");
    let refused = found["map"]["refused"].as_array().expect("a list");
    assert!(!refused.is_empty(), "{found:#}");
}
