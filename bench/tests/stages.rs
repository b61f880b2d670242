//! `gantry-bench stages` on a small image: every figure is there and positive, the JSON parses.
//! Nothing is asserted about speed.

use std::path::Path;
use std::process::Command;

use gantry_bench::stages::StagesReport;

const IMAGE_BYTES: usize = 16 << 20;

/// Words of this program's own file, so that there is something to compress, and a hole.
fn image(path: &Path) {
    let own = std::fs::read(std::env::current_exe().expect("own path")).expect("own file");
    let data: Vec<u8> = own.iter().copied().cycle().take(IMAGE_BYTES * 3 / 4).collect();
    std::fs::write(path, data).expect("an image");
    let file = std::fs::File::options().write(true).open(path).expect("the image");
    file.set_len(IMAGE_BYTES as u64).expect("a hole");
}

fn stages(more: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.raw");
    image(&path);
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-bench"));
    command.arg("stages").arg("--image").arg(&path).arg("--work").arg(folder.path());
    command.args(["--seconds-max", "0.05", "--runs", "1"]).args(more);
    command.output().expect("gantry-bench")
}

#[test]
fn every_stage_has_positive_figures_and_the_json_parses() {
    let output = stages(&["--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: StagesReport = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report.sample_bytes > 0 && report.sample_bytes <= IMAGE_BYTES as u64);
    let names = [
        "read",
        "scan data",
        "scan zero",
        "hash",
        "compress none",
        "decompress none",
        "compress fast",
        "decompress fast",
        "compress optimal",
        "decompress optimal",
        "compress high",
        "decompress high",
        "compress extreme",
        "decompress extreme",
        "checksum",
        "quic 1452",
        "quic",
        "tcp",
        "write",
    ];
    let found: Vec<&str> = report.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(found, names);
    for stage in &report.stages {
        for way in std::iter::once(&stage.gantry).chain(&stage.references) {
            let what = format!("{}: {way:?}", stage.name);
            assert!(
                way.gb_per_second.median > 0.0 && way.gb_per_second.median.is_finite(),
                "{what}"
            );
            let cpu = way.cpu_seconds_per_gb.map_or(1.0, |cpu| cpu.median);
            assert!(cpu > 0.0 && cpu.is_finite(), "{what}");
        }
        let measured = stage.references.iter().all(|way| way.ratio.is_some_and(|r| r.median > 0.0));
        assert!(measured, "{}", stage.name);
        assert!(!stage.references.is_empty() || stage.name == "scan data");
    }
    let mtu = |name: &str| report.stage(name).unwrap().gantry.note.clone().unwrap_or_default();
    assert!(
        mtu("quic").starts_with("MTU ") && mtu("quic 1452").starts_with("MTU "),
        "{}",
        mtu("quic")
    );
}

#[test]
fn one_stage_alone_makes_a_table() {
    let output = stages(&["--only", "hash"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("blake3 crate"), "{text}");
    assert!(text.contains("cores") && !text.contains("quic"), "{text}");
}

#[test]
fn an_image_of_zeros_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zeros.raw");
    std::fs::write(&path, vec![0; 2 << 20]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-bench"));
    let output = command.arg("stages").arg("--image").arg(&path).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing but zeros"));
}
