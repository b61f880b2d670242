//! vcsim: VMware's own simulated vCenter, built from Debian's govmomi package.
//!
//! In: `golang-go` and `golang-github-vmware-govmomi-dev` (`cargo xtask test` installs them). Out: a
//! running vcsim on 127.0.0.1, killed when dropped. It is built once into `target/vcsim`.

pub mod small_disk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_control::vcenter::property::{ObjectContent, Properties, Start};
use gantry_control::vcenter::{Secret, Settings, VCenter, VmRef};
use gantry_http::{Endpoint, Trust};

use crate::program::Running;
use crate::scratch::{Scratch, target_folder};

/// The user that it knows.
pub const USER: &str = "gantry";
/// Her password.
pub const PASSWORD: &str = "correct horse";

/// Where Debian puts the sources of Go packages.
const GO_SOURCES: &str = "/usr/share/gocode";

/// A running vcsim.
#[derive(Debug)]
pub struct Vcsim {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// SHA-256 of its certificate, in hexadecimal digits.
    pub thumbprint: String,
    running: Running,
    scratch: Scratch,
}

impl Vcsim {
    /// Starts one with `machines` VMs in each of its two resource pools (`DC0_H0_VM…`,
    /// `DC0_C0_RP0_VM…`), as a vCenter.
    pub fn start(machines: usize) -> Vcsim {
        Vcsim::run(&["-machines", &machines.to_string()])
    }

    /// Starts one as a standalone ESXi with `machines` VMs.
    pub fn start_esx(machines: usize) -> Vcsim {
        Vcsim::run(&["-esx", "-machines", &machines.to_string()])
    }

    fn run(arguments: &[&str]) -> Vcsim {
        let program = build();
        let scratch = Scratch::new();
        let mut command = Command::new(program);
        // Its datastores are folders made there; they are gone with the scratch folder.
        command.args(arguments).env("TMPDIR", scratch.path());
        let mut running = Running::start(scratch.path(), &mut command);
        let line = running.wait_for_line("listening ");
        let (port, thumbprint) = line.split_once(' ').expect("port and thumbprint");
        let port = port.parse().expect("a port");
        Vcsim { port, thumbprint: thumbprint.to_owned(), running, scratch }
    }

    /// The folder that a datastore of this name is; vcsim names it after datacenter and datastore.
    pub fn datastore(&self, name: &str) -> PathBuf {
        let entries = fs::read_dir(self.scratch.path()).expect("the scratch folder");
        let mut folders = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let holds =
            |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(name));
        folders.find(|path| holds(path)).unwrap_or_else(|| panic!("no datastore {name}"))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.running.id()
    }
}

/// Builds `target/vcsim` unless it is newer than its source.
///
/// Two test programs may do so at once: each builds under a name of its own and renames.
fn build() -> PathBuf {
    let program = target_folder().join("vcsim");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/vcsim/main.go");
    let changed = |path: &Path| fs::metadata(path).and_then(|facts| facts.modified()).ok();
    if changed(&program) > changed(&source) {
        return program;
    }
    let built = target_folder().join(format!("vcsim-{}", std::process::id()));
    let go = target_folder().join("go");
    let output = Command::new("go")
        .args(["build", "-o"])
        .arg(&built)
        .arg(&source)
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("GOPATH", format!("{}:{GO_SOURCES}", go.display()))
        .env("GOCACHE", go.join("cache"))
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!("go: {error}; apt-get install golang-go golang-github-vmware-govmomi-dev")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "vcsim does not build (golang-github-vmware-govmomi-dev is needed): {errors}"
    );
    fs::rename(&built, &program).expect("the program can be renamed");
    program
}

/// How a client reaches it.
pub fn settings(vcsim: &Vcsim, password: &str) -> Settings {
    let thumbprint = vcsim.thumbprint.parse().expect("a thumbprint");
    let endpoint = Endpoint::new("127.0.0.1", vcsim.port).expect("an endpoint");
    Settings::new(endpoint, Trust::Sha256Thumbprint(thumbprint), USER, Secret::new(password))
}

/// A client of it.
pub fn vcenter(vcsim: &Vcsim) -> VCenter {
    VCenter::new(settings(vcsim, PASSWORD)).expect("a client")
}

/// Its machines by name and reference, through a container view.
pub async fn machines(vcenter: &VCenter) -> Vec<VmRef> {
    let view = vcenter.container_view(None, &["VirtualMachine"]).await.expect("a view");
    let properties = [Properties { kind: "VirtualMachine", paths: &["name"] }];
    let mut found = Vec::new();
    let each = |content: ObjectContent| {
        found.push(VmRef::new(content.object.clone(), content.text("name").expect("a name")));
    };
    vcenter.retrieve(&properties, &Start::View(&view), each).await.expect("names");
    vcenter.destroy_view(&view).await.expect("the view ends");
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}
