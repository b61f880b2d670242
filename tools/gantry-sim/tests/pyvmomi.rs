//! The official client drives the simulator: `pyvmomi_drive.py` with pyVmomi, pinned by version.
//!
//! In: the built program; Python with `venv`. Out: every step of the script passes. The virtual
//! environment is made once under `target/` and used again.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The client's version, the same whose tables `schema/types.txt` was written from.
const PYVMOMI: &str = "pyvmomi==9.1.1.0";

struct Sim {
    child: Child,
    ready: String,
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(root: &Path, arguments: &[&str]) -> Sim {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gantry-sim"))
        .arg("--root")
        .arg(root)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("gantry-sim starts");
    let mut ready = String::new();
    let output = child.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut ready).expect("its first line");
    Sim { child, ready: ready.trim().to_owned() }
}

/// The Python of the environment that has pyVmomi.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pyvmomi");
    let python = target.join("bin/python");
    let mark = target.join(PYVMOMI);
    if mark.exists() {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&target));
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PYVMOMI]));
    std::fs::write(mark, "").expect("the mark of a complete environment");
    python
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (&output.stdout, &output.stderr);
    let said = format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err));
    assert!(output.status.success(), "{command:?}:\n{said}");
    print!("{said}");
}

fn drive(sim: &Sim, steps: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pyvmomi_drive.py");
    run(Command::new(python()).arg(script).arg(&sim.ready).arg(steps));
}

/// One test, so that the environment is made once.
#[test]
fn pyvmomi_drives_the_simulator() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = start(root.path(), &[]);
    drive(&sim, "step_");
    drive(&sim, "before_a_kill");
    drop(sim);
    drive(&start(root.path(), &[]), "after_a_kill");
}
