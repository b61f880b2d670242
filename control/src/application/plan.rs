//! A script as program and arguments, and what its failure means. Pure.
//!
//! In: a [`ScriptRun`], the guest's family, the folder made for it. Out: a [`Plan`]. Every text of the
//! job's settings is quoted for the shell that reads it; what cannot be quoted safely is refused.

use std::time::Duration;

use bytes::Bytes;

use crate::cbt::PolicyOutcome;
use crate::limits;
use crate::vcenter::guest::GuestLogin;

/// Which shell reads a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A POSIX shell.
    Posix,
    /// `cmd.exe`.
    Windows,
}

impl Family {
    /// By `guestId`, such as `windows2019srv_64Guest`.
    pub fn of_guest_id(guest_id: &str) -> Family {
        if guest_id.to_ascii_lowercase().starts_with("win") {
            Family::Windows
        } else {
            Family::Posix
        }
    }
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// A script that is brought into the guest, and taken away afterwards.
    Upload {
        /// Its file name: on Windows its ending says what it is.
        name: String,
        /// Its text.
        content: Bytes,
    },
    /// A program that is in the guest, by its whole path: the persistent agent.
    Installed {
        /// Where.
        path: String,
    },
}

/// One run of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptRun {
    /// What.
    pub script: Script,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// How long it may run; [`limits::SCRIPT_SECONDS`] unless set.
    pub timeout: Duration,
    /// As whom.
    pub login: GuestLogin,
}

impl ScriptRun {
    /// A run with the usual time-out and no arguments.
    pub fn new(script: Script, login: GuestLogin) -> ScriptRun {
        let timeout = Duration::from_secs(limits::SCRIPT_SECONDS);
        ScriptRun { script, arguments: Vec::new(), timeout, login }
    }
}

/// What is done in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where the script goes, if it is uploaded.
    pub upload: Option<String>,
    /// The program.
    pub program: String,
    /// Its arguments as one text.
    pub arguments: String,
    /// Where its output goes.
    pub output: String,
}

/// Why a script cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The name is no plain file name.
    #[error(
        "'{0}' is no name for a script: letters, digits, '.', '-' and '_', not beginning with a dot"
    )]
    Name(String),
    /// The path is not whole.
    #[error("'{0}' is not the whole path of a program in the guest")]
    Path(String),
    /// A text holds what the shell would read as more than text.
    #[error(
        "the argument or path '{0}' holds characters that the guest's shell cannot be given safely"
    )]
    Unsafe(String),
    /// It is too large.
    #[error("the script has {bytes} bytes, more than {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Windows cannot run it.
    #[error("Windows runs scripts that end in .cmd, .bat or .ps1, not '{0}'")]
    Ending(String),
}

impl Plan {
    /// Plans a run within `folder`, which was made for it in the guest.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(run: &ScriptRun, family: Family, folder: &str) -> Result<Plan, PlanError> {
        let separator = if family == Family::Windows { '\\' } else { '/' };
        let within =
            |name: &str| format!("{}{separator}{name}", folder.trim_end_matches(separator));
        let output = within("output.txt");
        let (upload, path) = match &run.script {
            Script::Upload { name, content } => {
                check_upload(name, content)?;
                (Some(within(name)), within(name))
            }
            Script::Installed { path } => {
                let drive = path.get(1..3) == Some(":\\");
                let is_whole =
                    if family == Family::Windows { drive } else { path.starts_with('/') };
                if !is_whole {
                    return Err(PlanError::Path(short(path)));
                }
                (None, path.clone())
            }
        };
        let quote = |text: &str| match family {
            Family::Posix => posix(text),
            Family::Windows => windows(text),
        };
        let mut words = vec![quote(&path)?];
        for argument in &run.arguments {
            words.push(quote(argument)?);
        }
        let redirected = format!("> {} 2>&1", quote(&output)?);
        let (program, arguments) = match family {
            // The program's path is given bare: it is a path of its own there.
            Family::Posix => {
                (path, words[1..].iter().cloned().chain([redirected]).collect::<Vec<_>>().join(" "))
            }
            Family::Windows => {
                let shell = if path.to_ascii_lowercase().ends_with(".ps1") {
                    "powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -File "
                } else if upload.is_none() || is_batch(&path) {
                    ""
                } else {
                    return Err(PlanError::Ending(short(&path)));
                };
                let line = format!("{shell}{} {redirected}", words.join(" "));
                ("C:\\Windows\\System32\\cmd.exe".to_owned(), format!("/d /s /c \"{line}\""))
            }
        };
        Ok(Plan { upload, program, arguments, output })
    }
}

fn check_upload(name: &str, content: &Bytes) -> Result<(), PlanError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(fits) {
        return Err(PlanError::Name(short(name)));
    }
    if name == "output.txt" {
        return Err(PlanError::Name(name.to_owned()));
    }
    let max = limits::SCRIPT_BYTES_MAX;
    if content.len() > max {
        return Err(PlanError::TooLarge { bytes: content.len(), max });
    }
    Ok(())
}

fn is_batch(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    [".cmd", ".bat"].iter().any(|ending| path.ends_with(ending))
}

/// A word for a POSIX shell.
fn posix(text: &str) -> Result<String, PlanError> {
    if text.chars().any(char::is_control) {
        return Err(PlanError::Unsafe(short(text)));
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

/// A word for `cmd.exe`, which has no quoting that holds for all of these characters.
fn windows(text: &str) -> Result<String, PlanError> {
    if text.chars().any(|c| c.is_control() || "\"%!^&|<>".contains(c)) || text.ends_with('\\') {
        return Err(PlanError::Unsafe(short(text)));
    }
    Ok(format!("\"{text}\""))
}

fn short(text: &str) -> String {
    text.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a script that fails means for the machine's backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It counts as a success; the log has it.
    Success,
    /// The backup goes on, and ends with a warning.
    Ignore,
    /// The backup of the machine fails.
    #[default]
    Fail,
}

impl OnFailure {
    /// Judges a run: `failure` is in words, none for exit code 0.
    pub fn judge(self, failure: Option<&str>) -> PolicyOutcome {
        match (self, failure) {
            (_, None) | (OnFailure::Success, _) => PolicyOutcome::Go,
            (OnFailure::Ignore, Some(why)) => PolicyOutcome::Warn(why.to_owned()),
            (OnFailure::Fail, Some(why)) => PolicyOutcome::Stop(why.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, OnFailure, Plan, PlanError, Script, ScriptRun};
    use crate::cbt::PolicyOutcome;
    use crate::limits;
    use crate::vcenter::Secret;
    use crate::vcenter::guest::GuestLogin;

    fn run(script: Script, arguments: &[&str]) -> ScriptRun {
        let login = GuestLogin { user: "u".into(), password: Secret::new("p") };
        let arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        ScriptRun { arguments, ..ScriptRun::new(script, login) }
    }

    fn upload(name: &str) -> Script {
        Script::Upload { name: name.into(), content: "true".into() }
    }

    #[test]
    fn a_posix_script_is_quoted() {
        let run = run(upload("freeze.sh"), &["a b", "it's", "$(reboot)"]);
        let plan = Plan::new(&run, Family::Posix, "/tmp/x/").expect("a plan");
        assert_eq!(plan.upload.as_deref(), Some("/tmp/x/freeze.sh"));
        assert_eq!(plan.program, "/tmp/x/freeze.sh");
        assert_eq!(plan.arguments, r"'a b' 'it'\''s' '$(reboot)' > '/tmp/x/output.txt' 2>&1");
        assert_eq!(run.timeout.as_secs(), 600);
    }

    #[test]
    fn a_windows_script_goes_through_its_shell() {
        let folder = "C:\\Temp\\x";
        let plan = Plan::new(&run(upload("f.ps1"), &["a b"]), Family::Windows, folder);
        let arguments = plan.expect("a plan").arguments;
        assert!(arguments.ends_with(
            "-File \"C:\\Temp\\x\\f.ps1\" \"a b\" > \"C:\\Temp\\x\\output.txt\" 2>&1\""
        ));
        let plan = Plan::new(&run(upload("f.sh"), &[]), Family::Windows, folder);
        assert!(matches!(plan, Err(PlanError::Ending(_))));
        for bad in ["%PATH%", "a\"b", "a&b", "c:\\"] {
            let plan = Plan::new(&run(upload("f.cmd"), &[bad]), Family::Windows, folder);
            assert!(matches!(plan, Err(PlanError::Unsafe(_))), "{bad}");
        }
        let installed = Script::Installed { path: "C:\\Agent\\freeze.exe".into() };
        assert!(Plan::new(&run(installed, &[]), Family::Windows, folder).is_ok());
        assert_eq!(Family::of_guest_id("windows2019srv_64Guest"), Family::Windows);
        assert_eq!(Family::of_guest_id("darwin14_64Guest"), Family::Posix);
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let refused = |script| Plan::new(&run(script, &[]), Family::Posix, "/t").expect_err("bad");
        for name in ["", ".x", "../x", "a b", "a;b", "output.txt"] {
            assert!(matches!(refused(upload(name)), PlanError::Name(_)), "{name}");
        }
        let path = "freeze".to_owned();
        assert!(matches!(refused(Script::Installed { path }), PlanError::Path(_)));
        let content = vec![0; limits::SCRIPT_BYTES_MAX + 1].into();
        assert!(matches!(
            refused(Script::Upload { name: "x".into(), content }),
            PlanError::TooLarge { .. }
        ));
        let newline = run(upload("x"), &["a\nb"]);
        assert!(Plan::new(&newline, Family::Posix, "/t").is_err());
    }

    #[test]
    fn the_policy_decides() {
        assert_eq!(OnFailure::default().judge(None), PolicyOutcome::Go);
        assert_eq!(OnFailure::Success.judge(Some("x")), PolicyOutcome::Go);
        assert_eq!(OnFailure::Ignore.judge(Some("x")), PolicyOutcome::Warn("x".into()));
        assert_eq!(OnFailure::Fail.judge(Some("x")), PolicyOutcome::Stop("x".into()));
    }
}
