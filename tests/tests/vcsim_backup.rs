//! `gantry` against vcsim: a machine's disk, bit for bit, over https and direct. vcsim knows no
//! changed blocks: the session falls back as it would in the field, and says so.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gantry_tests::compare::assert_same;
use gantry_tests::images;
use gantry_tests::program::{Outcome, Running, control, mover};
use gantry_tests::scratch::Scratch;
use gantry_tests::vcsim::small_disk::{SmallDisk, VM};
use gantry_tests::vcsim::{PASSWORD, USER, Vcsim};

const MIB: u64 = 1 << 20;

fn config(scratch: &Scratch, vcsim: &Vcsim, proxy: &str, mode: &str) -> PathBuf {
    let password = scratch.write("password", PASSWORD);
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&password, private).expect("made private");
    let text = format!(
        "state = {:?}\nmover = {:?}\n[vcenter]\nurl = \"https://127.0.0.1:{}\"\nuser = \"{USER}\"\n\
         password_file = {password:?}\nthumbprint = \"{}\"\n[repository]\naddress = {:?}\n\
         [proxy]\n{proxy}\n[backup]\ntransport = \"{mode}\"\n",
        scratch.join("state"),
        mover(),
        vcsim.port,
        vcsim.thumbprint,
        scratch.join("repository"),
    );
    scratch.write("gantry.toml", text)
}

fn run(scratch: &Scratch, program: PathBuf, arguments: &[&str]) -> Outcome {
    Running::start(scratch.path(), Command::new(program).args(arguments)).wait()
}

fn there_and_back(mode: &str) {
    let (vcsim, scratch) = (Vcsim::start(1), Scratch::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let SmallDisk { datastore, folder, flat, .. } = runtime.block_on(SmallDisk::make(&vcsim, 5));
    let repository = scratch.join("repository").display().to_string();
    run(&scratch, mover(), &["repo", "init", &repository]).ok();
    let proxy = match mode {
        "direct" => format!("mounts = {{ {datastore} = {folder:?} }}"),
        _ => String::new(),
    };
    let config = config(&scratch, &vcsim, &proxy, mode).display().to_string();
    for (round, says) in ["first backup", "no change id"].into_iter().enumerate() {
        if round > 0 {
            images::overwrite(&flat, 3 * MIB + 512, &[7; 4096]);
        }
        let arguments = ["vm", "backup", VM, "--json", "--config", &config];
        let session = run(&scratch, control(), &arguments).ok();
        // A snapshot that goes at once is not waited for: the pauses are for stubborn ones.
        assert!(session.took < Duration::from_secs(9), "{:?}", session.took);
        let said = session.json();
        let log = said[0]["log"].to_string();
        assert!(log.contains(says), "{said:#}");
        assert_eq!(said[0]["disks"][0]["transport"], mode, "{said:#}");
        let name = said[0]["mover"]["name"].as_str().expect("a name").to_owned();
        let restored = scratch.join(format!("restored-{round}.raw"));
        let to = restored.display().to_string();
        let from = ["restore", "--repo", &repository, "--name", &name, "--to", &to];
        run(&scratch, mover(), &from).ok();
        assert_same(&flat, &restored);
    }
    let left = ["cleanup", "--json", "--config", &config];
    assert_eq!(run(&scratch, control(), &left).ok().json()["open"], 0);
}

#[test]
fn over_https() {
    there_and_back("https");
}

#[test]
fn over_direct() {
    there_and_back("direct");
}
