//! Guest operations: credentials, files and programs in a machine's guest.
//!
//! A machine that is off gives `InvalidPowerState`, one whose tools do not run
//! `GuestOperationsUnavailable`, a wrong name or password `InvalidGuestLogin`, in this order, as the
//! vSphere Web Services reference has it. Contents travel beside SOAP (`/guestFile`), behind one-time
//! addresses with `*` for the host, which a client replaces by the one it is connected to.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Call;
use crate::fault::Fault;
use crate::guest::files::{FileError, Node, PERMISSIONS};
use crate::guest::{Transfer, process, shell};
use crate::limits;
use crate::schema::{Value, list, object};
use crate::site::{Power, Subject};
use crate::tasks::machine_mut;

use super::power::wrong_power;

/// Files that `ListFilesInGuest` gives when the client says nothing.
const LISTED_MAX: usize = 50;
/// Permission to run a file, for anybody.
const RUNNABLE: u32 = 0o111;

pub(super) fn invoke(call: &Call) -> Result<Value, Fault> {
    let (machine, user) = enter(call)?;
    match call.method {
        "ValidateCredentialsInGuest" => Ok(Value::Absent),
        "StartProgramInGuest" => start(call, machine, &user),
        "ListProcessesInGuest" => list_processes(call, machine),
        "TerminateProcessInGuest" => {
            let pid = call.arguments.get("pid").number().unwrap_or(-1);
            if call.sim.guest_systems().of(machine).processes.terminate(pid) {
                return Ok(Value::Absent);
            }
            let message = format!("There is no process {pid} in the guest.");
            Err(Fault::new("GuestProcessNotFound", message).with("pid", pid))
        }
        "InitiateFileTransferToGuest" => upload(call, machine),
        "InitiateFileTransferFromGuest" => download(call, machine),
        _ => files(call, machine).map_err(|error| fault(&error)),
    }
}

/// The machine's number and the guest's user, if the machine runs, its tools do, and the credentials
/// are right.
fn enter(call: &Call) -> Result<(u32, String), Fault> {
    let vm = call.arguments.get("vm").reference().cloned();
    let vm = vm.ok_or_else(|| Fault::invalid_argument("vm"))?;
    let auth = call.arguments.get("auth");
    let mut state = call.sim.lock();
    let subject = call.endpoint(&mut state).subject(&vm).cloned();
    let Some(Subject::Machine(id)) = subject else { return Err(Fault::no_object(&vm)) };
    let machine = machine_mut(&mut state, id)?;
    if machine.power != Power::On {
        return Err(wrong_power(machine, Power::On));
    }
    if !machine.tools || machine.connection != "connected" {
        let message = "The guest operations agent could not be contacted.";
        return Err(Fault::new("GuestOperationsUnavailable", message));
    }
    let user = auth.at("username").text().unwrap_or_default();
    let password = auth.at("password").text().unwrap_or_default();
    let known = machine.guest_users.get(user).is_some_and(|right| right.is(password));
    if auth.ty() != "NamePasswordAuthentication" || !known {
        let message = "Failed to authenticate with the guest operating system using the supplied \
                       credentials.";
        return Err(Fault::new("InvalidGuestLogin", message));
    }
    Ok((id, user.to_owned()))
}

fn fault(error: &FileError) -> Fault {
    let (ty, file) = match error {
        FileError::NotFound(file) => ("FileNotFound", file),
        FileError::Exists(file) => ("FileAlreadyExists", file),
        FileError::WrongKind(file) | FileError::NotEmpty(file) => ("FileFault", file),
        FileError::Refused(file) => ("CannotAccessFile", file),
    };
    Fault::new(ty, error.to_string()).with("file", file)
}

fn files(call: &Call, machine: u32) -> Result<Value, FileError> {
    let arguments = &call.arguments;
    let mut systems = call.sim.guest_systems();
    let files = &mut systems.of(machine).files;
    match call.method {
        "CreateTemporaryFileInGuest" | "CreateTemporaryDirectoryInGuest" => {
            let folder = arguments.get("directoryPath").text().unwrap_or("/tmp");
            let (prefix, suffix) = (arguments.text("prefix"), arguments.text("suffix"));
            if prefix.contains('/') || suffix.contains('/') {
                return Err(FileError::Refused(format!("{prefix}{suffix}")));
            }
            files.node(folder)?;
            let path = files.free_name(folder, prefix, suffix);
            if call.method == "CreateTemporaryFileInGuest" {
                files.write(&path, Vec::new(), Some(0o600))?;
            } else {
                files.make_folder(&path, false)?;
            }
            Ok(path.into())
        }
        "MakeDirectoryInGuest" => {
            let parents = arguments.bool("createParentDirectories");
            files.make_folder(arguments.text("directoryPath"), parents)?;
            Ok(Value::Absent)
        }
        "DeleteFileInGuest" => files.delete(arguments.text("filePath")).map(|()| Value::Absent),
        "DeleteDirectoryInGuest" => {
            files.delete_folder(arguments.text("directoryPath"), arguments.bool("recursive"))?;
            Ok(Value::Absent)
        }
        _ => {
            let found = files.list(arguments.text("filePath"))?;
            let number = |name: &str| arguments.get(name).number();
            let count = |n: i64| usize::try_from(n).ok();
            let skip = number("index").and_then(count).unwrap_or(0).min(found.len());
            let most = number("maxResults").and_then(count).unwrap_or(LISTED_MAX);
            let remaining = found.len().saturating_sub(skip).saturating_sub(most);
            let page = found.iter().skip(skip).take(most);
            let page: Vec<Value> = page.map(|(name, node)| file_info(name, node)).collect();
            Ok(object(
                "GuestListFileInfo",
                [("files", list(page)), ("remaining", remaining.into())],
            ))
        }
    }
}

fn attributes(node: &Node) -> Value {
    object(
        "GuestPosixFileAttributes",
        [
            ("modificationTime", node.modified.into()),
            ("accessTime", node.modified.into()),
            ("symlinkTarget", "".into()),
            ("ownerId", 0.into()),
            ("groupId", 0.into()),
            ("permissions", i64::from(node.permissions).into()),
        ],
    )
}

fn file_info(name: &str, node: &Node) -> Value {
    object(
        "GuestFileInfo",
        [
            ("path", name.into()),
            ("type", node.kind().into()),
            ("size", node.size().into()),
            ("attributes", attributes(node)),
        ],
    )
}

/// Opens a transfer; its address.
fn open(call: &Call, machine: u32, path: &str, upload: Option<(u64, u32)>) -> String {
    let token = crate::session::secret(16);
    let port = {
        let mut state = call.sim.lock();
        call.endpoint(&mut state).address.map_or(443, |address| address.port())
    };
    let (path, begun) = (path.to_owned(), Timestamp::now());
    let transfer = Transfer { machine, token: token.clone(), path, upload, begun };
    let id = call.sim.guest_systems().open(transfer);
    format!("https://*:{port}/guestFile?id={id}&token={token}")
}

fn upload(call: &Call, machine: u32) -> Result<Value, Fault> {
    let arguments = &call.arguments;
    let path = arguments.text("guestFilePath");
    let size = arguments.get("fileSize").number().and_then(|size| u64::try_from(size).ok());
    let size = size.filter(|size| *size <= limits::GUEST_FILE_BYTES_MAX as u64);
    let size = size.ok_or_else(|| Fault::invalid_argument("fileSize"))?;
    {
        let mut systems = call.sim.guest_systems();
        let files = &systems.of(machine).files;
        let path = files.writable(path).map_err(|error| fault(&error))?;
        if files.node(&path).is_ok() && !arguments.bool("overwrite") {
            return Err(fault(&FileError::Exists(path)));
        }
    }
    let permissions = arguments.get("fileAttributes").at("permissions").number();
    let permissions = permissions.and_then(|bits| u32::try_from(bits & 0o7777).ok());
    let upload = Some((size, permissions.unwrap_or(PERMISSIONS)));
    Ok(open(call, machine, path, upload).into())
}

fn download(call: &Call, machine: u32) -> Result<Value, Fault> {
    let path = call.arguments.text("guestFilePath");
    let (size, attributes) = {
        let mut systems = call.sim.guest_systems();
        let files = &systems.of(machine).files;
        files.read(path).map_err(|error| fault(&error))?;
        let node = files.node(path).map_err(|error| fault(&error))?;
        (node.size(), attributes(node))
    };
    let url = open(call, machine, path, None);
    Ok(object(
        "FileTransferInformation",
        [("attributes", attributes), ("size", size.into()), ("url", url.into())],
    ))
}

fn start(call: &Call, machine: u32, user: &str) -> Result<Value, Fault> {
    let spec = call.arguments.get("spec");
    let program = spec.at("programPath").text().unwrap_or_default().trim_matches('"');
    let arguments = spec.at("arguments").text().unwrap_or_default();
    {
        let mut systems = call.sim.guest_systems();
        let system = systems.of(machine);
        if let Some(folder) = spec.at("workingDirectory").text().filter(|text| !text.is_empty()) {
            system.files.node(folder).map_err(|error| fault(&error))?;
        }
        if !shell::is_program(program) {
            system.files.read(program).map_err(|error| fault(&error))?;
            let node = system.files.node(program).map_err(|error| fault(&error))?;
            if node.permissions & RUNNABLE == 0 {
                let message = format!("{program}: no permission to run it in the guest.");
                return Err(Fault::new("GuestPermissionDenied", message));
            }
        }
        if !system.processes.has_room() {
            let message = "Too many programs run in the simulated guest.";
            return Err(Fault::new("GuestOperationsFault", message));
        }
    }
    let mut environment = BTreeMap::new();
    for variable in spec.at("envVariables").items() {
        let Some((name, value)) = variable.text().and_then(|text| text.split_once('=')) else {
            return Err(Fault::invalid_argument("spec.envVariables"));
        };
        environment.insert(name.to_owned(), value.to_owned());
    }
    Ok(process::start(&call.sim, machine, user, (program, arguments), environment).into())
}

fn list_processes(call: &Call, machine: u32) -> Result<Value, Fault> {
    let wanted: Vec<i64> =
        call.arguments.get("pids").items().iter().filter_map(Value::number).collect();
    let mut systems = call.sim.guest_systems();
    let processes = systems.of(machine).processes.iter();
    let processes = processes.filter(|found| wanted.is_empty() || wanted.contains(&found.pid));
    let processes = processes.map(|found| {
        object(
            "GuestProcessInfo",
            [
                ("name", (&found.name).into()),
                ("pid", found.pid.into()),
                ("owner", (&found.owner).into()),
                ("cmdLine", (&found.command).into()),
                ("startTime", found.started.into()),
                ("endTime", found.ended.map(|(at, _)| at).into()),
                ("exitCode", found.ended.map(|(_, code)| code).into()),
            ],
        )
    });
    Ok(list(processes.collect::<Vec<_>>()))
}
