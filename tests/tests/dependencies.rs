//! House rules that a machine can check: who may depend on whom, where unsafe code may stand,
//! how files begin, how long they may grow.

use std::path::{Path, PathBuf};
use std::process::Command;

/// No source file may be longer, whatever the reason; the aim is 400.
const FILE_LINES_MAX: usize = 700;

/// Crates with a limited choice; a crate that is not listed may depend on anything of ours.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("gantry-uring", &[]),
    ("gantry-common", &[]),
    ("gantry-guest", &[]),
    ("gantry-http", &[]),
    ("gantry-vmdk", &[]),
    ("gantry-transport", &["gantry-common", "gantry-uring"]),
    (
        "gantry-dataplane",
        &[
            "gantry-common",
            "gantry-guest",
            "gantry-http",
            "gantry-transport",
            "gantry-uring",
            "gantry-vmdk",
        ],
    ),
    ("gantry-scheduler", &["gantry-common"]),
    ("gantry-database", &["gantry-common", "gantry-transport"]),
    // Its tests turn on a feature of its own: the backend in memory.
    ("gantry-api", &["gantry-api", "gantry-common", "gantry-database", "gantry-http"]),
    (
        "gantry-control",
        &[
            "gantry-api",
            "gantry-common",
            "gantry-database",
            "gantry-http",
            "gantry-scheduler",
            "gantry-transport",
        ],
    ),
];

/// Crates that nothing of ours may depend on, except each other.
const OUTERMOST: [&str; 4] = ["gantry-bench", "gantry-tests", "gantry-sim", "xtask"];

/// The one crate with unsafe code.
const UNSAFE_CRATE: &str = "gantry-uring";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

fn packages() -> Vec<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

fn name(package: &serde_json::Value) -> &str {
    package["name"].as_str().expect("a package has a name")
}

/// Every kind of dependency on our own crates counts: normal, build and dev.
fn own_dependencies(package: &serde_json::Value) -> Vec<&str> {
    let all = package["dependencies"].as_array().expect("dependencies");
    all.iter().filter(|dependency| dependency["path"].is_string()).map(name).collect()
}

#[test]
fn dependencies_point_one_way() {
    let packages = packages();
    for (crate_name, allowed) in ALLOWED {
        let package = packages.iter().find(|package| name(package) == crate_name);
        let found = own_dependencies(package.expect(crate_name));
        for dependency in found {
            assert!(allowed.contains(&dependency), "{crate_name} must not know {dependency}");
        }
    }
    for package in packages.iter().filter(|package| !OUTERMOST.contains(&name(package))) {
        for dependency in own_dependencies(package) {
            assert!(
                !OUTERMOST.contains(&dependency),
                "{} must not know {dependency}",
                name(package)
            );
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_the_ring_crate() {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    assert!(workspace.contains("\nunsafe_code = \"forbid\"\n"));
    for package in packages() {
        let path = package["manifest_path"].as_str().expect("a manifest path");
        let manifest = std::fs::read_to_string(path).expect(path);
        let inherits = manifest.contains("[lints]\nworkspace = true");
        if name(&package) == UNSAFE_CRATE {
            assert!(manifest.contains("undocumented_unsafe_blocks = \"deny\""), "{path}");
        } else {
            assert!(inherits, "{path} must take the workspace's lints");
        }
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let file_name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if file_name != "target" && !file_name.starts_with('.') {
                    waiting.push(path);
                }
            } else if file_name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn every_source_file_says_what_it_is_for_and_stays_short() {
    let sources = sources();
    assert!(sources.len() > 5, "the walk found {} files", sources.len());
    for path in sources {
        let text = std::fs::read_to_string(&path).expect("a source file");
        assert!(text.starts_with("//! "), "{} must begin with //!", path.display());
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines", path.display());
    }
}
