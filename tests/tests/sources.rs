//! Sources that are no file descriptor: what is backed up from them comes back bit for bit, and
//! what need not be read is not.

use std::path::Path;

use gantry_tests::images;
use gantry_tests::program::agrees;
use gantry_tests::servers::DiskServer;
use gantry_tests::site::Site;

const MIB: u64 = 1 << 20;

#[test]
fn an_nbd_export_comes_back_full_and_by_compare() {
    let site = Site::new();
    let server = site.serve();
    let folder = site.scratch.path();
    let image = images::synthesise(&site.scratch, "exported", 40 * MIB + 512);
    let [one, two] = image.versions();
    let mut points = Vec::new();
    for (number, version) in [one, two].into_iter().enumerate() {
        let file = format!("file={}", version.display());
        let name = format!("version-{number}");
        let disk = DiskServer::nbdkit(folder, &name, &["file", &file]);
        let run = site.backup(&server, "vm").disk(Path::new(&disk.url()), "disk");
        // Blocks as small as the image's holes.
        let report = run.args(["--block-size", "256K"]).report();
        assert_eq!(report.mode(0), ["full", "compare"][number]);
        report.log_says(&["nbd", "holes are told"]);
        let (reported, counted) = (report.number("bytes_read") as f64, disk.stop());
        assert!((counted - reported).abs() <= 0.01 * reported, "{counted} and {reported}");
        assert!(reported < image.virtual_bytes as f64, "holes were read: {reported}");
        points.push(report.point());
    }
    site.restore(&server, "vm").point(&points[0]).equals(one);
    site.restore(&server, "vm").point(&points[1]).equals(two);
    // The same disk from a file is the same disk.
    let again =
        site.backup(&server, "vm").disk(two, "disk").args(["--full", "--block-size", "256K"]);
    let again = again.report();
    assert_eq!(again.number("bytes_transferred"), 0);
}

#[test]
fn a_qcow2_behind_qemu_nbd_comes_back_by_changed_extents() {
    let site = Site::new();
    let server = site.serve();
    let folder = site.scratch.path();
    let image = images::synthesise(&site.scratch, "grown", 24 * MIB);
    let [one, two] = image.versions();
    let mut base: Option<String> = None;
    for (number, version) in [one, two].into_iter().enumerate() {
        let qcow2 = folder.join(format!("{number}.qcow2"));
        let convert = ["convert", "-f", "raw", "-O", "qcow2"].map(AsRef::as_ref);
        agrees("qemu-img", &[&convert[..], &[version.as_os_str(), qcow2.as_os_str()]].concat());
        let disk = DiskServer::qemu(folder, &format!("qemu-{number}"), "qcow2", &qcow2);
        let run = site.backup(&server, "vm").disk(Path::new(&disk.url()), "disk");
        let report = match &base {
            None => run.report(),
            Some(base) => run.args(["--base", base.as_str()]).changed(&image.changed).report(),
        };
        assert_eq!(report.mode(0), ["full", "extents"][number]);
        report.log_says(&["4 connection"]);
        site.restore(&server, "vm").equals(version);
        base = Some(report.point());
    }
}

#[test]
fn a_source_specification_is_read_from_a_private_file_only() {
    let site = Site::new();
    site.repo("init").ok();
    let image = images::synthesise(&site.scratch, "specified", 3 * MIB);
    let json = serde_json::json!({"kind": "path", "path": image.first, "format": "raw"});
    let spec = site.scratch.write("spec.json", json.to_string());
    let run = || site.backup_local("vm").args(["--source-spec".as_ref(), spec.as_os_str()]);
    let mode = |mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&spec, permissions).unwrap();
    };
    mode(0o644);
    run().run().fails_with(2).saying(&["chmod 600"]);
    mode(0o600);
    run().report();
    site.restore_local("vm").equals(&image.first);
    std::fs::write(&spec, r#"{"kind":"https","host":"h","auth":{"cookie":"SECRET"}}"#).unwrap();
    let refused = run().run().fails_with(2).saying(&["spec.json", "missing field `port`"]);
    assert!(!refused.err.contains("SECRET") && !refused.out.contains("SECRET"));
}

#[test]
fn an_nbd_server_that_is_not_there_is_a_failure_of_the_source() {
    let site = Site::new();
    site.repo("init").ok();
    let nowhere = format!("nbd+unix:///?socket={}", site.scratch.join("nobody").display());
    let run = site.backup_local("vm").source(Path::new(&nowhere)).run();
    run.fails_with(3).saying(&["nobody", "cannot connect", "check"]);
    let run = site.backup_local("vm").source(Path::new("nbds://127.0.0.1/x")).run();
    run.fails_with(2).saying(&["tls-certificates"]);
    assert!(site.points().is_empty());
}

#[test]
fn vmdks_of_every_subformat_of_qemu_come_back_as_the_raw_disk() {
    let site = Site::new();
    site.repo("init").ok();
    let folder = site.scratch.path();
    let image = images::synthesise(&site.scratch, "virtual", 12 * MIB);
    let [one, two] = image.versions();
    let subformats = [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ];
    for subformat in subformats {
        let mut base = String::new();
        for (number, version) in [one, two].into_iter().enumerate() {
            let vmdk = folder.join(format!("{subformat}-{number}.vmdk"));
            let option = format!("subformat={subformat}");
            let convert = ["convert", "-f", "raw", "-O", "vmdk", "-o", &option].map(AsRef::as_ref);
            agrees("qemu-img", &[&convert[..], &[version.as_os_str(), vmdk.as_os_str()]].concat());
            let run = site.backup_local(subformat).disk(&vmdk, "disk");
            let run = run.args(["--block-size", "256K"]);
            let report = match number {
                0 => run.report(),
                _ => run.args(["--base", base.as_str()]).changed(&image.changed).report(),
            };
            assert_eq!(report.mode(0), ["full", "extents"][number]);
            report.log_says(&["read as a vmdk"]);
            assert!(report.number("bytes_read") < image.virtual_bytes, "holes were read");
            let back = folder.join(format!("{subformat}-{number}.raw"));
            let convert = ["convert", "-f", "vmdk", "-O", "raw"].map(AsRef::as_ref);
            agrees("qemu-img", &[&convert[..], &[vmdk.as_os_str(), back.as_os_str()]].concat());
            site.restore_local(subformat).equals(&back);
            base = report.point();
        }
    }
    // The same file as raw is another disk: the descriptor's own bytes, and only on demand.
    let descriptor = folder.join("monolithicFlat-0.vmdk");
    let raw = site.backup_local("raw").disk(&descriptor, "disk");
    raw.args(["--source-format", "raw"]).report();
    site.restore_local("raw").equals(&descriptor);
    let renamed = folder.join("descriptor.raw");
    std::fs::copy(&descriptor, &renamed).unwrap();
    let refused = site.backup_local("raw").disk(&renamed, "disk").run();
    refused.fails_with(3).saying(&["--source-format"]);
}
