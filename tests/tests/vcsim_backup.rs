//! `gantry` against vcsim: a machine's disk, bit for bit, over https and direct. vcsim knows no
//! changed blocks: the session falls back as it would in the field, and says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gantry_control::broker::devices::Devices;
use gantry_control::vcenter::{Secret, Settings, TaskWait, VCenter, VmRef};
use gantry_http::{Endpoint, Trust};
use gantry_tests::compare::assert_same;
use gantry_tests::images;
use gantry_tests::program::{Outcome, Running, control, mover};
use gantry_tests::scratch::Scratch;
use gantry_tests::vcsim::{PASSWORD, USER, Vcsim};

const MIB: u64 = 1 << 20;
const VM: &str = "DC0_H0_VM0";
const DISK_BYTES: u64 = 16 * MIB;

fn vcenter(vcsim: &Vcsim) -> VCenter {
    let thumbprint = vcsim.thumbprint.parse().expect("a thumbprint");
    let endpoint = Endpoint::new("127.0.0.1", vcsim.port).expect("an endpoint");
    let trust = Trust::Sha256Thumbprint(thumbprint);
    VCenter::new(Settings::new(endpoint, trust, USER, Secret::new(PASSWORD))).expect("a client")
}

/// Gives the machine one small disk instead of the large one that vcsim made; its descriptor.
async fn small_disk(vcenter: &VCenter) -> String {
    let index = vcenter.container_view(None, &["VirtualMachine"]).await.expect("a view");
    let paths = ["name", "config.hardware.device"];
    let wanted =
        gantry_control::vcenter::property::Properties { kind: "VirtualMachine", paths: &paths };
    let start = gantry_control::vcenter::property::Start::View(&index);
    let mut found = None;
    let each = |content: gantry_control::vcenter::property::ObjectContent| {
        if content.text("name") == Some(VM) {
            found = Some(content);
        }
    };
    vcenter.retrieve(&[wanted], &start, each).await.expect("machines");
    let content = found.expect("the machine");
    let devices = Devices::parse(content.get("config.hardware.device").expect("devices"));
    let disk = devices.disks.values().next().expect("a disk").clone();
    let vm = VmRef::new(content.object.clone(), VM);
    let file = disk.file.replace("disk1", "small");
    let task = vcenter
        .reconfigure(&vm, |w| {
            w.nest("deviceChange", |w| {
                w.text("operation", "remove");
                w.typed("device", "VirtualDisk", |w| {
                    w.value("key", disk.key).value("capacityInKB", 0);
                });
            });
            w.nest("deviceChange", |w| {
                w.text("operation", "add").text("fileOperation", "create");
                w.typed("device", "VirtualDisk", |w| {
                    w.value("key", -1);
                    w.typed("backing", "VirtualDiskFlatVer2BackingInfo", |w| {
                        w.text("fileName", &file).text("diskMode", "persistent");
                    });
                    w.value("controllerKey", disk.controller_key).value("unitNumber", disk.unit);
                    w.value("capacityInKB", DISK_BYTES / 1024);
                });
            });
        })
        .await
        .expect("begun");
    let wait = TaskWait::new("ReconfigVM_Task", VM, Duration::from_secs(30));
    vcenter.wait_for_task(&task, wait).await.expect("the disk is small");
    file
}

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
    let descriptor = runtime.block_on(async {
        let vcenter = vcenter(&vcsim);
        let descriptor = small_disk(&vcenter).await;
        vcenter.log_out().await.expect("logged out");
        descriptor
    });
    let (datastore, file) = descriptor[1..].split_once("] ").expect("a datastore path");
    let folder = vcsim.datastore(datastore);
    let flat = folder.join(file.replace(".vmdk", "-flat.vmdk"));
    images::noise_disk(&flat, DISK_BYTES, 5);
    write_descriptor(&folder.join(file), &flat);
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

fn write_descriptor(path: &Path, flat: &Path) {
    let sectors = DISK_BYTES / 512;
    let name = flat.file_name().expect("a name").to_string_lossy();
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
         RW {sectors} VMFS \"{name}\"\nddb.adapterType = \"lsilogic\"\n"
    );
    std::fs::write(path, text).expect("writable");
}

#[test]
fn over_https() {
    there_and_back("https");
}

#[test]
fn over_direct() {
    there_and_back("direct");
}
