//! Machines made again: disks uploaded to a datastore, registered by a `.vmx` or by CreateVM, and disks
//! that a proxy fills by hot-add; what a lost datastore does to transfers.
//!
//! In: calls and uploads over TLS. Out: a machine that runs on the very bytes.

mod client;

use client::{Client, simulator};
use gantry_http::Request;
use gantry_sim::drill;
use gantry_sim::storage::DatastorePath;

const DISK_BYTES: usize = 2 << 20;

fn content() -> Vec<u8> {
    // A hole in the middle, as restored disks have them.
    let byte = |at: usize| if (at >> 18) == 3 { 0 } else { (at * 7 + (at >> 9)) as u8 };
    (0..DISK_BYTES).map(byte).collect()
}

fn descriptor(flat: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
         RW {} VMFS \"{flat}\"\nddb.adapterType = \"lsilogic\"\n\
         ddb.uuid = \"60 00 C2 9a 01 02 03 04-05 06 07 08 09 0a 0b 0c\"\n",
        DISK_BYTES / 512
    )
}

async fn put(client: &Client, file: &str, bytes: impl Into<Vec<u8>>) -> u16 {
    let request = Request::put(format!("/folder/{file}?dcPath=DC0&dsName=vmfs0"), bytes.into());
    client.send(request).await.expect("an answer").status
}

async fn upload_disk(client: &Client, folder: &str) {
    let name = format!("<name>[vmfs0] {folder}</name>");
    let made = client.call("FileManager", "FileManager", "MakeDirectory", &name).await;
    made.expect("an answer").ok();
    assert_eq!(put(client, &format!("{folder}/d.vmdk"), descriptor("d-flat.vmdk")).await, 201);
    assert_eq!(put(client, &format!("{folder}/d-flat.vmdk"), content()).await, 201);
}

/// Folder and pool for a new machine, as elements.
fn place(client: &Client) -> (String, String) {
    let state = client.sim.lock();
    let mut entries = state.endpoints[0].model.entries();
    let folder =
        entries.find(|e| e.reference.ty == "Folder" && e.get("name").text() == Some("Test"));
    let mut entries = state.endpoints[0].model.entries();
    let pool = entries.find(|e| e.reference.ty == "ResourcePool");
    let id =
        |found: Option<&gantry_sim::model::Entry>| found.expect("there").reference.id.to_string();
    (id(folder), format!("<pool type=\"ResourcePool\">{}</pool>", id(pool)))
}

fn holds(client: &Client, file: &str, wanted: &[u8]) {
    let file: DatastorePath = file.parse().expect("a path");
    let storage = &client.sim.storage;
    let disk = storage.find_disk(&file).expect("a disk");
    let mut found = vec![0; wanted.len()];
    storage.read(disk, 0, &mut found).expect("its content");
    assert!(found == wanted, "{file} holds something else");
}

#[tokio::test]
async fn a_machine_is_registered_from_uploaded_files_and_runs() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), None).await;
    let client = Client::login(&sim).await;
    assert_eq!(put(&client, "nowhere/x.vmdk", "x").await, 404);
    assert_eq!(put(&client, "web0/web0-flat.vmdk", content()).await, 500, "its machine runs");
    upload_disk(&client, "back0").await;
    let vmx = "displayName = \"back0\"\nguestOS = \"other-64\"\nnumvcpus = \"3\"\nmemSize = \"64\"\n\
               scsi0.present = \"TRUE\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"d.vmdk\"\n\
               ethernet0.present = \"TRUE\"\nethernet0.networkName = \"Storage\"\n";
    assert_eq!(put(&client, "back0/back0.vmx", vmx).await, 201);
    let (folder, pool) = place(&client);
    let register =
        format!("<path>[vmfs0] back0/back0.vmx</path><asTemplate>false</asTemplate>{pool}");
    assert_eq!(client.task("Folder", &folder, "RegisterVM_Task", &register).await, "success");
    assert_eq!(client.task("Folder", &folder, "RegisterVM_Task", &register).await, "AlreadyExists");
    let vm = client.machine("back0");
    {
        let state = sim.lock();
        let model = &state.endpoints[0].model;
        assert_eq!(model.get(&vm, "config.hardware.numCPU").number(), Some(3));
        assert_eq!(model.get(&vm, "network").references().len(), 1);
    }
    holds(&client, "[vmfs0] back0/d.vmdk", &content());
    assert_eq!(client.task("VirtualMachine", &vm, "PowerOnVM_Task", "").await, "success");
    drill::guest_start(&sim, "back0", 100).expect("its guest writes");
    assert_eq!(put(&client, "back0/d-flat.vmdk", content()).await, 500, "it runs");
    assert_eq!(client.task("VirtualMachine", &vm, "PowerOffVM_Task", "").await, "success");
    assert_eq!(client.task("VirtualMachine", &vm, "Destroy_Task", "").await, "success");
    assert!(!root.path().join("datastores/vmfs0/back0/d-flat.vmdk").exists());
}

#[tokio::test]
async fn a_machine_is_created_with_a_disk_that_is_there_and_one_that_a_proxy_fills() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), None).await;
    let client = Client::login(&sim).await;
    upload_disk(&client, "made0").await;
    let (folder, pool) = place(&client);
    let disk = |key: i32, unit: i32, create: &str, file: &str| {
        format!(
            "<deviceChange><operation>add</operation>{create}<device xsi:type=\"VirtualDisk\">\
             <key>{key}</key><backing xsi:type=\"VirtualDiskFlatVer2BackingInfo\">\
             <fileName>{file}</fileName><diskMode>persistent</diskMode></backing>\
             <controllerKey>-101</controllerKey><unitNumber>{unit}</unitNumber>\
             <capacityInKB>2048</capacityInKB></device></deviceChange>"
        )
    };
    let create = "<fileOperation>create</fileOperation>";
    let config = format!(
        "<config><name>made0</name><files><vmPathName>[vmfs0] made0/made0.vmx</vmPathName></files>\
         <deviceChange><operation>add</operation><device xsi:type=\"ParaVirtualSCSIController\">\
         <key>-101</key><busNumber>0</busNumber><sharedBus>noSharing</sharedBus></device>\
         </deviceChange>{}{}</config>{pool}",
        disk(-1, 0, "", "[vmfs0] made0/d.vmdk"),
        disk(-2, 1, create, "[vmfs0] made0/new.vmdk"),
    );
    assert_eq!(client.task("Folder", &folder, "CreateVM_Task", &config).await, "success");
    holds(&client, "[vmfs0] made0/d.vmdk", &content());
    // A proxy attaches the empty disk, fills it through its own device, and lets it go.
    let proxy = client.machine("gantry-proxy0");
    let attach = disk(-1, 5, "", "[vmfs0] made0/new.vmdk").replace("-101", "1000");
    let attach = format!("<spec>{attach}</spec>");
    assert_eq!(client.task("VirtualMachine", &proxy, "ReconfigVM_Task", &attach).await, "success");
    let vm = client.machine("made0");
    assert_ne!(client.task("VirtualMachine", &vm, "PowerOnVM_Task", "").await, "success");
    let attached = sim.storage.attached();
    assert_eq!(attached.len(), 1);
    std::fs::write(&attached[0].path, content()).expect("the proxy writes");
    let detach = "<spec><deviceChange><operation>remove</operation><device xsi:type=\"VirtualDisk\">\
                  <key>2005</key><capacityInKB>0</capacityInKB></device></deviceChange></spec>";
    let detached = client.task("VirtualMachine", &proxy, "ReconfigVM_Task", detach).await;
    assert_eq!(detached, "success");
    assert!(sim.storage.attached().is_empty());
    holds(&client, "[vmfs0] made0/new.vmdk", &content());
    assert_eq!(client.task("VirtualMachine", &vm, "PowerOnVM_Task", "").await, "success");
    // Now it runs: nobody may attach it for writing any more.
    let refused = client.task("VirtualMachine", &proxy, "ReconfigVM_Task", &attach).await;
    assert_eq!(refused, "FileLocked");
}

#[tokio::test]
async fn disks_that_no_host_can_run_are_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), None).await;
    let client = Client::login(&sim).await;
    upload_disk(&client, "odd").await;
    let proxy = client.machine("gantry-proxy0");
    let attach = async |file: &str| {
        let spec = format!(
            "<spec><deviceChange><operation>add</operation><device xsi:type=\"VirtualDisk\">\
             <key>-1</key><backing xsi:type=\"VirtualDiskFlatVer2BackingInfo\"><fileName>[vmfs0] \
             {file}</fileName><diskMode>persistent</diskMode></backing><controllerKey>1000\
             </controllerKey><unitNumber>3</unitNumber><capacityInKB>0</capacityInKB></device>\
             </deviceChange></spec>"
        );
        client.task("VirtualMachine", &proxy, "ReconfigVM_Task", &spec).await
    };
    assert_eq!(put(&client, "odd/other.vmdk", descriptor("d-flat.vmdk")).await, 201);
    assert_eq!(attach("odd/other.vmdk").await, "GenericVmConfigFault");
    assert_eq!(put(&client, "odd/rubbish.vmdk", vec![7; 100_000]).await, 201);
    assert_eq!(attach("odd/rubbish.vmdk").await, "GenericVmConfigFault");
    assert_eq!(attach("odd/none.vmdk").await, "FileNotFound");
}

#[tokio::test]
async fn a_lost_datastore_cuts_downloads_that_run() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), None).await;
    let client = Client::login(&sim).await;
    let web0 = client.machine("web0");
    let snapshot = "<name>n</name><memory>false</memory><quiesce>false</quiesce>";
    client.task("VirtualMachine", &web0, "CreateSnapshot_Task", snapshot).await;
    let run = |json: &str| {
        for command in drill::parse(json.as_bytes()).expect(json) {
            drill::apply(&sim, command).expect(json);
        }
    };
    run(r#"{"kind":"read-latency","delay_ms":20}"#);
    let fetch = client.send(Request::get("/folder/web0/web0-flat.vmdk?dcPath=DC0&dsName=vmfs0"));
    let lose = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        run(r#"{"kind":"datastore-loss","datastore":"vmfs0"}"#);
    };
    let (fetched, ()) = tokio::join!(fetch, lose);
    assert!(fetched.is_err(), "64 MiB at this latency take seconds: it was cut");
}
