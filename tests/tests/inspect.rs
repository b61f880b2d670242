//! `gantry-mover inspect` on disks of several kinds: the same disk is the same, whatever it is read by, and
//! what cannot be understood is copied whole.

use gantry_tests::guest_disk::{ROOT, SWAP, disk, run};
use gantry_tests::images;
use gantry_tests::servers::DiskServer;
use gantry_tests::site::Site;
use serde_json::Value;

const MIB: u64 = 1 << 20;
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
