//! `gantry-bench end-to-end` with a stand-in for `gantry-mover` that keeps whole copies: the
//! rounds, the accounts and the comparison of what was restored, without a data plane.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gantry_bench::end_to_end::EndToEndReport;

/// Speaks the command line of `gantry-mover` and keeps the newest disk beside itself.
const STAND_IN: &str = r#"#!/bin/sh
here=$(dirname "$0")
command=$1
disk=$2
repository=$3
while [ $# -gt 0 ]; do
  [ "$1" = --to ] && to=$2
  shift
done
case $command in
  identity) [ "$disk" = create ] || echo 00 ;;
  repo) mkdir "$repository" && echo pack >"$repository/pack" ;;
  serve) echo "ready soon"; echo "listening on 127.0.0.1:1"
    trap 'exit 0' TERM; while :; do sleep 0.02; done ;;
  backup) cp "$disk" "$here/kept"
    echo '{"point": "01", "bytes_virtual": 8388608, "bytes_read": 4194304, "bytes_zero": 4194304,
      "bytes_sent_raw": 4194304, "bytes_transferred": 2000000, "bytes_stored": 2100000,
      "peak_rss_bytes": 1000}' ;;
  restore) cp "$here/kept" "$to"; HURT
    echo '{"bytes_virtual": 8388608, "bytes_zero": 4194304, "bytes_transferred": 2000000,
      "bytes_written": 4194304}' ;;
esac
"#;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// `hurt` is done to each restored disk.
    fn new(hurt: &str) -> Bench {
        let bench = Bench { folder: tempfile::tempdir().expect("a folder") };
        let mover = bench.path("mover");
        std::fs::write(&mover, STAND_IN.replace("HURT", hurt)).expect("a mover");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&mover, mode).expect("a mode");
        for (name, seed) in [("v1.raw", 1), ("v2.raw", 2)] {
            let mut disk = vec![0; 8 << 20];
            fastrand::Rng::with_seed(seed).fill(&mut disk[..4 << 20]);
            std::fs::write(bench.path(name), disk).expect("a disk");
        }
        std::fs::write(bench.path("changed.json"), r#"[{"start":0,"length":4194304}]"#)
            .expect("a list");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-bench"));
        let path = |name: &str| Path::new(&self.path(name)).display().to_string();
        command.args(["end-to-end", "--image", &path("v1.raw"), "--mover", &path("mover")]);
        command.args(["--work", &path(""), "--seconds-max", "0.05", "--runs", "2"]);
        command.args(more).output().expect("gantry-bench")
    }
}

#[test]
fn every_phase_is_measured_and_compared_with_its_stages() {
    let bench = Bench::new(":");
    let (v2, changed) = (bench.path("v2.raw"), bench.path("changed.json"));
    let (v2, changed) = (v2.to_str().unwrap(), changed.to_str().unwrap());
    let output = bench.run(&["--v2", v2, "--changed", changed, "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: EndToEndReport = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["full", "incremental by extents", "incremental by compare", "restore"]);
    for phase in &report.phases {
        assert!(phase.wall_seconds.median > 0.0, "{phase:?}");
        let expected = phase.expected.as_ref().unwrap();
        let sum: f64 = expected.parts.iter().map(|part| part.cpu_seconds).sum();
        assert!(sum > 0.0 && (sum - expected.cpu_seconds).abs() < 1e-9, "{expected:?}");
        let ratio = phase.wall_seconds.median / expected.wall_seconds;
        assert!((ratio / expected.ratio.median - 1.0).abs() < 1e-6, "{expected:?}");
    }
    assert_eq!(report.phases[0].expected.as_ref().unwrap().ratio_max, Some(1.5));
    assert_eq!(report.phases[0].rss_bytes_client, 1000);
    let left: Vec<_> = std::fs::read_dir(bench.folder.path()).unwrap().collect();
    let left: Vec<_> = left.into_iter().map(|entry| entry.unwrap().file_name()).collect();
    let ours = left.iter().filter(|name| name.to_string_lossy().starts_with("gantry-bench-"));
    assert_eq!(ours.count(), 0, "{left:?}");
}

#[test]
fn a_restored_disk_that_differs_fails_the_run() {
    let bench = Bench::new("printf GANTRY | dd of=\"$to\" bs=1 seek=5000 conv=notrunc 2>/dev/null");
    let output = bench.run(&[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("differ at byte 500"), "{errors}");
}

#[test]
fn a_mover_that_is_not_there_is_named_with_the_remedy() {
    let bench = Bench::new(":");
    std::fs::remove_file(bench.path("mover")).unwrap();
    let errors = String::from_utf8_lossy(&bench.run(&[]).stderr).into_owned();
    assert!(errors.contains("cargo build --release"), "{errors}");
}
