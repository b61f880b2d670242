//! What is done inside a guest, through VMware Tools: folders, files in and out, programs.
//!
//! In: a machine, a login of its guest. Out: typed answers, or a [`GuestError`] that tells a wrong
//! password from tools that do not run. Files go over HTTPS, to the address that the service names for
//! each of them; a host that serves one shows the certificate that vCenter knows it by. Source: the
//! vSphere Web Services API reference, `GuestOperationsManager`.
//!
//! Must not: print a password; follow an address that is not HTTPS; repeat what may have started.

use std::time::Duration;

use gantry_http::{Endpoint, HttpClient, Request, Thumbprint, Trust};

use super::error::{ErrorKind, VimError};
use super::fault::FaultKind;
use super::moref::{MoRef, VmRef};
use super::retry::Repeat;
use super::session::VCenter;
use super::xml::Element;
use super::xml_writer::XmlWriter;
use crate::limits;
use gantry_common::secret::Secret;

/// A user of the guest's operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestLogin {
    /// User name.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// A program in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProcess {
    /// Its number.
    pub pid: i64,
    /// Program and arguments, as the guest shows them.
    pub command: String,
    /// Its exit code, once it has ended.
    pub exit_code: Option<i32>,
}

/// Why something could not be done in a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest does not know the user or the password.
    #[error("{vm}: the guest refuses the user '{user}': user name or password are wrong")]
    WrongCredentials {
        /// The machine.
        vm: String,
        /// The user.
        user: String,
    },
    /// VMware Tools do not run, or the machine is off.
    #[error(
        "{vm}: guest operations are not to be had: {reason}; VMware Tools must run in the guest"
    )]
    ToolsNotRunning {
        /// The machine.
        vm: String,
        /// What vSphere says.
        reason: String,
    },
    /// The endpoint, the guest's system or its Tools cannot do it.
    #[error("{vm}: this guest operation is not available: {reason}")]
    Unavailable {
        /// The machine.
        vm: String,
        /// What vSphere says.
        reason: String,
    },
    /// The user may not do it in the guest, or a file is not there.
    #[error("{vm}: the guest refuses: {reason}")]
    Refused {
        /// The machine.
        vm: String,
        /// What vSphere says.
        reason: String,
    },
    /// A file could not be transferred.
    #[error("{vm}: the guest's file '{path}' cannot be transferred: {reason}")]
    Transfer {
        /// The machine.
        vm: String,
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The call failed.
    #[error("{0}")]
    Call(VimError),
}

impl GuestError {
    /// Whether the same may succeed a little later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, GuestError::Call(error) if error.is_retryable())
    }

    /// Whether it may have been done although it failed here.
    pub fn outcome_is_unknown(&self) -> bool {
        matches!(self, GuestError::Call(error) if error.outcome_is_unknown())
    }

    fn of(error: VimError, vm: &VmRef, user: &str) -> GuestError {
        let ErrorKind::Fault(fault) = &*error.kind else { return GuestError::Call(error) };
        let (vm, reason) = (vm.to_string(), fault.to_string());
        match &fault.kind {
            FaultKind::Other { fault: name } | FaultKind::InvalidState { fault: name } => {
                match name.as_str() {
                    "InvalidGuestLogin" | "GuestAuthenticationChallenge" => {
                        GuestError::WrongCredentials { vm, user: user.to_owned() }
                    }
                    "GuestOperationsUnavailable" | "ToolsUnavailable" | "InvalidPowerState" => {
                        GuestError::ToolsNotRunning { vm, reason }
                    }
                    "OperationNotSupportedByGuest"
                    | "OperationDisabledByGuest"
                    | "GuestComponentsOutOfDate"
                    | "GuestMultipleMappings" => GuestError::Unavailable { vm, reason },
                    name if name.starts_with("Guest") => GuestError::Refused { vm, reason },
                    _ => GuestError::Call(error),
                }
            }
            FaultKind::MethodNotFound | FaultKind::NotSupported { .. } => {
                GuestError::Unavailable { vm, reason }
            }
            FaultKind::FileFault { .. } => GuestError::Refused { vm, reason },
            _ => GuestError::Call(error),
        }
    }
}

/// One machine's guest, as one of its users.
#[derive(Debug, Clone)]
pub struct Guest {
    vcenter: VCenter,
    vm: VmRef,
    login: GuestLogin,
    auth: MoRef,
    files: MoRef,
    processes: MoRef,
}

impl Guest {
    /// Finds the managers of guest operations and has the login checked.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn enter(
        vcenter: &VCenter,
        vm: &VmRef,
        login: GuestLogin,
    ) -> Result<Guest, GuestError> {
        let manager = vcenter.content().await.map_err(GuestError::Call)?;
        let manager = manager.guest_operations_manager.clone();
        let lacking = || GuestError::Unavailable {
            vm: vm.to_string(),
            reason: "the endpoint has no guest operations".into(),
        };
        let manager = manager.ok_or_else(lacking)?;
        let paths = ["authManager", "fileManager", "processManager"];
        let content = vcenter.properties_of(&manager, "guest operations", &paths).await;
        let content = content.map_err(|error| GuestError::of(error, vm, &login.user))?;
        let [auth, files, processes] =
            paths.map(|path| content.get(path).and_then(Element::as_moref));
        let guest = Guest {
            vcenter: vcenter.clone(),
            vm: vm.clone(),
            login,
            auth: auth.ok_or_else(lacking)?,
            files: files.ok_or_else(lacking)?,
            processes: processes.ok_or_else(lacking)?,
        };
        let auth = guest.auth.clone();
        guest.call("ValidateCredentialsInGuest", &auth, Repeat::Harmless, |_| {}).await?;
        Ok(guest)
    }

    /// The machine.
    pub fn vm(&self) -> &VmRef {
        &self.vm
    }

    async fn call(
        &self,
        method: &'static str,
        this: &MoRef,
        repeat: Repeat,
        arguments: impl FnOnce(&mut XmlWriter),
    ) -> Result<Element, GuestError> {
        let object = self.vm.to_string();
        let sent = self.vcenter.call(method, this, &object, repeat, |w| {
            w.moref("vm", &self.vm.moref);
            w.typed("auth", "NamePasswordAuthentication", |w| {
                w.value("interactiveSession", false).text("username", &self.login.user);
                w.text("password", self.login.password.reveal());
            });
            arguments(w);
        });
        sent.await.map_err(|error| GuestError::of(error, &self.vm, &self.login.user))
    }

    fn unexpected(&self, method: &'static str, what: &str) -> GuestError {
        GuestError::Call(self.vcenter.unexpected(method, &self.vm.to_string(), what))
    }

    /// Makes a folder of its own in the guest's temporary folder; gives its path.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn create_temporary_folder(&self, prefix: &str) -> Result<String, GuestError> {
        let method = "CreateTemporaryDirectoryInGuest";
        let answer = self
            .call(method, &self.files, Repeat::Changes, |w| {
                w.text("prefix", prefix).text("suffix", "");
            })
            .await?;
        let path = answer.text_at("returnval");
        path.map(str::to_owned).ok_or_else(|| self.unexpected(method, "no path"))
    }

    /// Deletes a folder with everything in it.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn delete_folder(&self, path: &str) -> Result<(), GuestError> {
        let method = "DeleteDirectoryInGuest";
        self.call(method, &self.files, Repeat::Harmless, |w| {
            w.text("directoryPath", path).value("recursive", true);
        })
        .await
        .map(drop)
    }

    /// Puts a file into the guest; it replaces one of the same name. `is_program` lets its owner run
    /// it, on guests that know such a thing.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn upload(
        &self,
        path: &str,
        content: bytes::Bytes,
        is_posix: bool,
        is_program: bool,
    ) -> Result<(), GuestError> {
        let method = "InitiateFileTransferToGuest";
        let answer = self
            .call(method, &self.files, Repeat::Harmless, |w| {
                w.text("guestFilePath", path);
                if is_posix {
                    w.typed("fileAttributes", "GuestPosixFileAttributes", |w| {
                        w.value("permissions", if is_program { 0o700 } else { 0o600 });
                    });
                } else {
                    w.typed("fileAttributes", "GuestFileAttributes", |_| {});
                }
                w.value("fileSize", content.len()).value("overwrite", true);
            })
            .await?;
        let url = answer.text_at("returnval");
        let url = url.ok_or_else(|| self.unexpected(method, "no address"))?;
        let (client, path_and_query) = self.server(path, url).await?;
        // The address is good for one request.
        let request = Request::put(path_and_query, content).idempotent(false);
        let request = request.timeout(Duration::from_secs(limits::GUEST_TRANSFER_SECONDS_MAX));
        let failed = |reason: String| self.transfer(path, reason);
        let response = client.send(&request).await.map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        response.discard(64 << 10).await;
        if status.is_success() { Ok(()) } else { Err(failed(format!("HTTP status {status}"))) }
    }

    /// Gets the first `bytes_max` bytes of a guest's file, and whether it has more.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn download(
        &self,
        path: &str,
        bytes_max: usize,
    ) -> Result<(Vec<u8>, bool), GuestError> {
        let method = "InitiateFileTransferFromGuest";
        let answer = self
            .call(method, &self.files, Repeat::Harmless, |w| {
                w.text("guestFilePath", path);
            })
            .await?;
        let url = answer.text_at("returnval.url");
        let url = url.ok_or_else(|| self.unexpected(method, "no address"))?;
        let (client, path_and_query) = self.server(path, url).await?;
        let request = Request::get(path_and_query).idempotent(false);
        let failed = |reason: String| self.transfer(path, reason);
        let mut response =
            client.send(&request).await.map_err(|error| failed(error.to_string()))?;
        if !response.status().is_success() {
            return Err(failed(format!("HTTP status {}", response.status())));
        }
        let mut content = Vec::new();
        while let Some(chunk) =
            response.next_chunk().await.map_err(|error| failed(error.to_string()))?
        {
            let room = bytes_max - content.len();
            content.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                return Ok((content, true));
            }
        }
        Ok((content, false))
    }

    /// Starts a program; gives its number. In POSIX guests a shell reads program and arguments.
    ///
    /// # Errors
    /// See [`GuestError`]; after a lost answer ([`GuestError::outcome_is_unknown`]) it may run.
    pub async fn start(&self, program: &str, arguments: &str) -> Result<i64, GuestError> {
        let method = "StartProgramInGuest";
        let answer = self
            .call(method, &self.processes, Repeat::Changes, |w| {
                w.typed("spec", "GuestProgramSpec", |w| {
                    w.text("programPath", program).text("arguments", arguments);
                });
            })
            .await?;
        answer.number_at("returnval").ok_or_else(|| self.unexpected(method, "no process number"))
    }

    /// The program of this number, or all; those that have ended stay known for about five minutes.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn processes(&self, pid: Option<i64>) -> Result<Vec<GuestProcess>, GuestError> {
        let method = "ListProcessesInGuest";
        let answer = self
            .call(method, &self.processes, Repeat::Harmless, |w| {
                if let Some(pid) = pid {
                    w.value("pids", pid);
                }
            })
            .await?;
        let process = |one: &Element| {
            Some(GuestProcess {
                pid: one.number_at("pid")?,
                command: one.text_at("cmdLine").unwrap_or_default().to_owned(),
                // An exit code without an end is not one.
                exit_code: one.text_at("endTime").and_then(|_| one.number_at("exitCode")),
            })
        };
        Ok(answer.all("returnval").filter_map(process).collect())
    }

    /// Ends a program. One that has ended is no error.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn terminate(&self, pid: i64) -> Result<(), GuestError> {
        let method = "TerminateProcessInGuest";
        let ended = self.call(method, &self.processes, Repeat::Harmless, |w| {
            w.value("pid", pid);
        });
        match ended.await {
            Err(GuestError::Refused { reason, .. })
                if reason.starts_with("GuestProcessNotFound") =>
            {
                Ok(())
            }
            ended => ended.map(drop),
        }
    }

    fn transfer(&self, path: &str, reason: String) -> GuestError {
        GuestError::Transfer { vm: self.vm.to_string(), path: path.to_owned(), reason }
    }

    /// The client of an address, and what is asked of it.
    async fn server(&self, path: &str, url: &str) -> Result<(HttpClient, String), GuestError> {
        let failed = |reason: String| self.transfer(path, reason);
        let own = self.vcenter.http().endpoint();
        let (endpoint, path_and_query) = address(url, own).map_err(failed)?;
        if &endpoint == own {
            return Ok((self.vcenter.http().clone(), path_and_query));
        }
        let trust = self.host_certificate().await.map(Trust::Sha256Thumbprint);
        let client = self.vcenter.http_of(endpoint, trust);
        client.map(|client| (client, path_and_query)).map_err(|error| failed(error.to_string()))
    }

    /// The certificate of the machine's host as vCenter knows it; where it does not say, the host is
    /// trusted as vCenter itself.
    async fn host_certificate(&self) -> Option<Thumbprint> {
        let name = self.vm.to_string();
        let host =
            self.vcenter.properties_of(&self.vm.moref, &name, &["runtime.host"]).await.ok()?;
        let host = host.get("runtime.host")?.as_moref()?;
        let path = "config.certificate";
        let content = self.vcenter.properties_of(&host, &host.to_string(), &[path]).await.ok()?;
        let bytes = content.get(path)?.children.iter();
        // XML Schema's bytes have a sign.
        let byte = |one: &Element| one.text.trim().parse::<i16>().ok().map(|byte| byte as u8);
        Thumbprint::of_pem(&bytes.map_while(byte).take(64 << 10).collect::<Vec<_>>())
    }
}

/// Takes an address apart; the host `*` means the endpoint that was asked.
fn address(url: &str, own: &Endpoint) -> Result<(Endpoint, String), String> {
    let strange = || "the service names an address that is not HTTPS".to_owned();
    let rest = url.strip_prefix("https://").ok_or_else(strange)?;
    let (host, path) = rest.split_at(rest.find('/').ok_or_else(strange)?);
    if host == "*" || host.starts_with("*:") {
        return Ok((own.clone(), path.to_owned()));
    }
    let endpoint = host.parse().map_err(|error: gantry_http::EndpointParseError| error.to_string());
    endpoint.map(|endpoint| (endpoint, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{Endpoint, GuestError, GuestLogin, VmRef, address};
    use crate::vcenter::error::{ErrorKind, VimError};
    use crate::vcenter::{Fault, MoRef, Secret, xml};

    #[test]
    fn an_address_is_taken_apart() {
        let own = Endpoint::new("vcenter", 8443).expect("an endpoint");
        let read = |url: &str| address(url, &own).map(|(e, path)| format!("{e} {path}"));
        assert_eq!(
            read("https://*:443/guestFile?id=1").as_deref(),
            Ok("vcenter:8443 /guestFile?id=1")
        );
        assert_eq!(read("https://*/g").as_deref(), Ok("vcenter:8443 /g"));
        assert_eq!(read("https://esx/g").as_deref(), Ok("esx:443 /g"));
        for bad in ["http://esx/g", "https://esx", "https://a b/g", "", "https:///g", "*"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_password_is_told_from_tools_that_do_not_run() {
        let vm = VmRef::new(MoRef::new("VirtualMachine", "vm-1"), "web");
        let told = |name: &str| {
            let text = format!("<d xmlns:xsi=\"x\"><F xsi:type=\"{name}\"/></d>");
            let root = xml::parse(text.as_bytes()).expect("XML");
            let kind = Box::new(ErrorKind::Fault(Fault::parse(&root.children[0], "said")));
            let (endpoint, object) = ("e".into(), "o".into());
            GuestError::of(VimError { endpoint, method: "M", object, kind }, &vm, "root")
        };
        assert!(matches!(told("InvalidGuestLogin"), GuestError::WrongCredentials { .. }));
        assert!(matches!(told("GuestOperationsUnavailable"), GuestError::ToolsNotRunning { .. }));
        assert!(matches!(told("InvalidPowerState"), GuestError::ToolsNotRunning { .. }));
        assert!(matches!(told("OperationNotSupportedByGuest"), GuestError::Unavailable { .. }));
        assert!(matches!(told("GuestPermissionDenied"), GuestError::Refused { .. }));
        assert!(matches!(told("NoPermission"), GuestError::Call(_)), "vCenter's refusal");
        let login = GuestLogin { user: "root".into(), password: Secret::new("hunter2") };
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
