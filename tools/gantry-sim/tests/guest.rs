//! Guest operations: who may, files in and out, programs and their ends, what happens without tools.
//!
//! In: calls over TLS as a backup product makes them around a snapshot. Out: the same answers and
//! faults as a real guest gives.

mod client;

use std::time::Duration;

use client::{Answer, Client, simulator};
use gantry_http::Request;
use gantry_sim::drill;

const SITE: &str = r#"
guest_users = { backup = "let me in" }
[[datacenter]]
name = "DC0"
hosts = ["esx0.example"]
[[datacenter.datastore]]
name = "ds0"
[[vm]]
name = "db0"
guest_writes_per_second = 400
disk = [{ size_mib = 8 }]
[[vm]]
name = "bare0"
tools = false
disk = [{ size_mib = 8 }]
[[vm]]
name = "off0"
on = false
disk = [{ size_mib = 8 }]
"#;

/// One machine's guest, with credentials.
struct Guest<'a> {
    client: &'a Client,
    vm: String,
    password: &'a str,
}

impl Guest<'_> {
    async fn call(&self, manager: &str, method: &str, parameters: &str) -> Answer {
        let (vm, password) = (&self.vm, self.password);
        let parameters = format!(
            "<vm type=\"VirtualMachine\">{vm}</vm><auth xsi:type=\"NamePasswordAuthentication\">\
             <interactiveSession>false</interactiveSession><username>backup</username>\
             <password>{password}</password></auth>{parameters}"
        );
        let ty = format!("Guest{manager}Manager");
        let id = format!("guestOperations{ty}");
        self.client.call(&ty, &id, method, &parameters).await.expect("an answer")
    }

    /// Uploads a file; the status of the transfer.
    async fn put(&self, path: &str, content: &str, permissions: u32) -> u16 {
        let size = content.len();
        let asked = self
            .call(
                "File",
                "InitiateFileTransferToGuest",
                &format!(
                    "<guestFilePath>{path}</guestFilePath><fileAttributes \
                     xsi:type=\"GuestPosixFileAttributes\"><permissions>{permissions}\
                     </permissions></fileAttributes><fileSize>{size}</fileSize>\
                     <overwrite>true</overwrite>"
                ),
            )
            .await
            .ok();
        let url = path_of(asked.of("returnval"));
        let put = Request::put(&url, content.to_owned());
        let done = self.client.send(put.clone()).await.expect("a transfer").status;
        let again = self.client.send(put).await.expect("an answer").status;
        assert_eq!(again, 404, "an address serves once");
        done
    }

    async fn get(&self, path: &str) -> String {
        let parameters = format!("<guestFilePath>{path}</guestFilePath>");
        let asked = self.call("File", "InitiateFileTransferFromGuest", &parameters).await.ok();
        let url = path_of(asked.of("url"));
        self.client.send(Request::get(url)).await.expect("a transfer").ok().text
    }

    async fn start(&self, program: &str, arguments: &str) -> Answer {
        let arguments =
            arguments.replace('>', "&gt;").replace('&', "&amp;").replace("&amp;gt", "&gt");
        let spec = format!(
            "<spec><programPath>{program}</programPath><arguments>{arguments}</arguments></spec>"
        );
        self.call("Process", "StartProgramInGuest", &spec).await
    }

    /// Runs a program to its end; its exit code.
    async fn run(&self, program: &str, arguments: &str) -> String {
        let started = self.start(program, arguments).await.ok();
        let pid = format!("<pids>{}</pids>", started.of("returnval"));
        loop {
            let told = self.call("Process", "ListProcessesInGuest", &pid).await.ok();
            if !told.of("endTime").is_empty() {
                return told.of("exitCode").to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Path and query of an address of the form that guest operations give.
fn path_of(url: &str) -> String {
    let url = url.replace("&amp;", "&");
    let rest = url.strip_prefix("https://*:").unwrap_or_else(|| panic!("{url}"));
    rest[rest.find('/').expect("a path")..].to_owned()
}

#[tokio::test]
async fn a_script_is_uploaded_run_read_back_and_removed() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), Some(SITE)).await;
    let client = Client::login(&sim).await;
    let guest = Guest { client: &client, vm: client.machine("db0"), password: "let me in" };
    guest.call("Auth", "ValidateCredentialsInGuest", "").await.ok();

    let made = "<prefix>gantry</prefix><suffix></suffix>";
    let folder = guest.call("File", "CreateTemporaryDirectoryInGuest", made).await.ok();
    let folder = folder.of("returnval").to_owned();
    assert!(folder.starts_with("/tmp/gantry"), "{folder}");
    let script = format!("{folder}/freeze.sh");
    let text = "#!/bin/sh\necho frozen $1\nstop-writes\nexit 3\n";
    assert_eq!(guest.put(&script, text, 0o700).await, 200);
    assert_eq!(guest.run(&script, &format!("now > {folder}/out 2>&1")).await, "3");
    assert_eq!(guest.get(&format!("{folder}/out")).await, "frozen now\n");
    let path = format!("<filePath>{folder}</filePath>");
    let listed = guest.call("File", "ListFilesInGuest", &path).await.ok();
    assert_eq!(listed.text.matches("<files>").count(), 2, "{}", listed.text);

    // What the guest writes to its disk stands still until it is told to go on.
    let (disk, file) = {
        let state = sim.lock();
        let machine = state.site.machines.values().find(|m| m.name == "db0").expect("db0");
        (machine.own_disks()[0], root.path().join("datastores/ds0/db0/db0-flat.vmdk"))
    };
    let content = || blake3::hash(&std::fs::read(&file).expect("the disk"));
    let still = content();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(still, content(), "{disk:?} was written to");
    assert_eq!(guest.run("/bin/sh", "-c start-writes").await, "0");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_ne!(still, content(), "{disk:?} is written to again");

    let gone = format!("<directoryPath>{folder}</directoryPath><recursive>false</recursive>");
    guest.call("File", "DeleteDirectoryInGuest", &gone).await.is_fault("FileFault");
    let file = format!("<filePath>{script}</filePath>");
    guest.call("File", "DeleteFileInGuest", &file).await.ok();
    guest.call("File", "DeleteFileInGuest", &file).await.is_fault("FileNotFound");
    let gone = gone.replace("false", "true");
    guest.call("File", "DeleteDirectoryInGuest", &gone).await.ok();
    assert_eq!(sim.guest_file("db0", &script), None);
}

#[tokio::test]
async fn who_may_not_and_what_is_not_there_is_told_by_its_fault() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), Some(SITE)).await;
    let client = Client::login(&sim).await;
    let guest =
        |name: &str, password| Guest { client: &client, vm: client.machine(name), password };
    let validate =
        async |guest: Guest<'_>| guest.call("Auth", "ValidateCredentialsInGuest", "").await;
    validate(guest("db0", "wrong")).await.is_fault("InvalidGuestLogin");
    validate(guest("bare0", "let me in")).await.is_fault("GuestOperationsUnavailable");
    validate(guest("off0", "let me in")).await.is_fault("InvalidPowerState");

    let db0 = guest("db0", "let me in");
    db0.start("/tmp/none.sh", "").await.is_fault("FileNotFound");
    assert_eq!(db0.put("/tmp/plain.sh", "true\n", 0o644).await, 200);
    db0.start("/tmp/plain.sh", "").await.is_fault("GuestPermissionDenied");
    assert_eq!(db0.run("/bin/sh", "/tmp/plain.sh").await, "0");
    let missing = "<guestFilePath>/tmp/none</guestFilePath>";
    db0.call("File", "InitiateFileTransferFromGuest", missing).await.is_fault("FileNotFound");
    let there = "<guestFilePath>/tmp/plain.sh</guestFilePath><fileAttributes/>\
                 <fileSize>3</fileSize><overwrite>false</overwrite>";
    db0.call("File", "InitiateFileTransferToGuest", there).await.is_fault("FileAlreadyExists");
    let asked =
        db0.call("File", "InitiateFileTransferToGuest", &there.replace("false", "true")).await.ok();
    let url = path_of(asked.of("returnval"));
    let short = client.send(Request::put(url, "xx")).await.expect("an answer");
    assert_eq!(short.status, 500, "as long as was announced");
    let forged = client.send(Request::get("/guestFile?id=1&token=x")).await.expect("an answer");
    assert_eq!(forged.status, 404);
}

#[tokio::test]
async fn a_program_that_hangs_is_ended_by_the_client_by_power_and_tools_may_go() {
    let root = tempfile::tempdir().expect("a folder");
    let sim = simulator(root.path(), Some(SITE)).await;
    let client = Client::login(&sim).await;
    let guest = Guest { client: &client, vm: client.machine("db0"), password: "let me in" };
    let pid = guest.start("/bin/sh", "-c hang").await.ok().of("returnval").to_owned();
    let of = format!("<pids>{pid}</pids>");
    let told = guest.call("Process", "ListProcessesInGuest", &of).await.ok();
    assert!(told.of("endTime").is_empty() && told.of("owner") == "backup", "{}", told.text);
    let pid = format!("<pid>{pid}</pid>");
    guest.call("Process", "TerminateProcessInGuest", &pid).await.ok();
    let told = guest.call("Process", "ListProcessesInGuest", &of).await.ok();
    assert_eq!(told.of("exitCode"), "143");
    guest.call("Process", "TerminateProcessInGuest", &pid).await.is_fault("GuestProcessNotFound");

    for command in drill::parse(br#"{"kind":"tools-stop","machine":"db0"}"#).expect("a drill") {
        drill::apply(&sim, command).expect("it is done");
    }
    let none = guest.call("Process", "ListProcessesInGuest", "").await;
    none.is_fault("GuestOperationsUnavailable");
    assert_eq!(client.task("VirtualMachine", &guest.vm, "PowerOffVM_Task", "").await, "success");
    assert_eq!(client.task("VirtualMachine", &guest.vm, "PowerOnVM_Task", "").await, "success");
    let told = guest.call("Process", "ListProcessesInGuest", &of).await.ok();
    assert!(told.of("pid").is_empty(), "processes are gone with the power: {}", told.text);
}
