//! `gantry-mover enroll`: this host joins an installation.
//!
//! In: an invitation, a folder. Out: `identity.pem` (mode 0600), `authority.pem` and `mover.toml`, ready
//! for `serve`. Invariant: nothing that exists is overwritten, and that is known before the invitation is
//! used up. Must not: show the invitation or the key.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gantry_common::enrolment::{ENROLMENT_BYTES_MAX, EnrolmentToken, MoverRole};
use gantry_common::failure::Failure;
use gantry_common::secret::Secret;
use serde::Serialize;

use super::arguments::EnrollArguments;
use super::{runtime, say, say_json, usage};
use crate::enrol::enrol;

/// What was made, for programs.
#[derive(Serialize)]
struct Shown<'a> {
    mover: &'a str,
    role: MoverRole,
    pin: String,
    identity: &'a Path,
    authority: &'a Path,
    config: &'a Path,
}

/// The files of a mover.
struct Files {
    identity: PathBuf,
    authority: PathBuf,
    config: PathBuf,
}

pub(super) fn run(arguments: &EnrollArguments) -> Result<(), Failure> {
    let token: EnrolmentToken = read(&arguments.invitation)?.reveal().parse().map_err(usage)?;
    let folder = std::path::absolute(&arguments.folder).map_err(usage)?;
    let files = Files {
        identity: folder.join("identity.pem"),
        authority: folder.join("authority.pem"),
        config: folder.join("mover.toml"),
    };
    let config = config(&token, &files, arguments)?;
    files.prepare(&folder)?;
    let enrolled = runtime()?.block_on(enrol(&token))?;
    enrolled.identity.save(&files.identity).map_err(usage)?;
    write_new(&files.authority, &enrolled.authority, 0o644)?;
    write_new(&files.config, &config, 0o644)?;
    let pin = enrolled.identity.pin().to_string();
    if arguments.json {
        let Files { identity, authority, config } = &files;
        let (mover, role) = (token.mover.as_str(), token.role);
        return say_json(&Shown { mover, role, pin, identity, authority, config });
    }
    say(&format!("{} '{}' is enrolled; its pin is {pin}", token.role, token.mover));
    say(&format!("look over {}, then start it:", files.config.display()));
    say(&format!("  gantry-mover serve --config {}", files.config.display()));
    say("or with systemd:\n  systemctl enable --now gantry-mover");
    say(&format!("then tell gantryd of it: gantry {} add", token.role));
    Ok(())
}

/// The invitation's text.
fn read(file: &Path) -> Result<Secret, Failure> {
    let mut text = String::new();
    let mut take = |from: &mut dyn Read| {
        let limit = ENROLMENT_BYTES_MAX as u64 + 1;
        from.take(limit).read_to_string(&mut text).map(drop)
    };
    let taken = match file.as_os_str() == "-" {
        true => take(&mut std::io::stdin().lock()),
        false => std::fs::File::open(file).and_then(|mut file| take(&mut file)),
    };
    taken.map_err(|error| usage(format!("invitation {}: {error}", file.display())))?;
    Ok(Secret::new(text))
}

impl Files {
    /// Makes the folder, and sees to it that nothing is there that would have to be overwritten.
    fn prepare(&self, folder: &Path) -> Result<(), Failure> {
        let place = |error: std::io::Error| usage(format!("{}: {error}", folder.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(place)?;
        for file in [&self.identity, &self.authority, &self.config] {
            if file.symlink_metadata().is_ok() {
                let text = "exists: this mover may be enrolled already; move it away, or name \
                            another --folder";
                return Err(usage(format!("{} {text}", file.display())));
            }
        }
        // An invitation holds once: better to fail now.
        let probe = folder.join(".enroll");
        std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(place)
    }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| usage(format!("{}: {error}", path.display())))
}

/// The mover's configuration. A JSON text of a path or name is a TOML string, too.
fn config(
    token: &EnrolmentToken,
    files: &Files,
    arguments: &EnrollArguments,
) -> Result<String, Failure> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let path = |path: &Path| {
        let absolute = std::path::absolute(path).map_err(usage)?;
        let text = absolute.to_str().ok_or_else(|| usage("a path is no text"))?;
        Ok::<_, Failure>(quoted(text))
    };
    let authority = path(&files.authority)?;
    let mut text = format!(
        "# {} {} of gantryd; see docs/operations.md.\n[identity]\nfile = {}\n\n[control]\naddress = {}\n\
         name = {}\nauthority = {authority}\napi = {}\nstate = {}\n",
        token.role,
        quoted(&token.mover),
        path(&files.identity)?,
        quoted(&token.control),
        quoted(&token.name),
        quoted(&token.url),
        path(&arguments.state)?,
    );
    match (token.role, &arguments.repository) {
        (MoverRole::Proxy, None) => text.push_str(
            "\n[proxy]\n# Datastores that are mounted on this host:\n\
             # mounts = { \"datastore1\" = \"/mnt/datastore1\" }\n",
        ),
        (MoverRole::Proxy, Some(_)) => {
            return Err(usage("this is the invitation of a proxy: leave --repository out"));
        }
        (MoverRole::Repository, None) => {
            return Err(usage("a repository needs its folder: --repository DIR"));
        }
        (MoverRole::Repository, Some(folder)) => text.push_str(&format!(
            "\n[listen]\naddress = \"{}\"\n\n[trust]\nfile = {authority}\n\n\
             [repository]\npath = {}\ncreate = true\n",
            arguments.listen,
            path(folder)?,
        )),
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve;

    fn arguments(folder: &Path, repository: Option<PathBuf>) -> EnrollArguments {
        EnrollArguments {
            invitation: folder.join("invitation"),
            folder: folder.join("new"),
            state: folder.join("state \"x\""),
            repository,
            listen: ([127, 0, 0, 1], 0).into(),
            json: false,
        }
    }

    fn token(role: MoverRole) -> EnrolmentToken {
        EnrolmentToken {
            url: "https://127.0.0.1:1".into(),
            ca_sha256: "ab".repeat(32),
            control: "127.0.0.1:2".into(),
            name: "gantryd \"\n[repository]\npath = \"/\"".into(),
            mover: "proxy-1".into(),
            role,
            secret: Secret::new("hush"),
        }
    }

    #[test]
    fn configurations_are_those_of_the_role_and_what_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            identity: folder.path().join("i.pem"),
            authority: folder.path().join("a.pem"),
            config: folder.path().join("mover.toml"),
        };
        let proxy = arguments(folder.path(), None);
        let repository = arguments(folder.path(), Some(folder.path().join("r")));
        for (role, arguments) in [(MoverRole::Proxy, &proxy), (MoverRole::Repository, &repository)]
        {
            let text = config(&token(role), &files, arguments).unwrap();
            assert!(!text.contains("hush"));
            write_new(&files.config, &text, 0o600).unwrap();
            let read = serve::load(&files.config).unwrap();
            assert_eq!(read.repository.is_some(), role == MoverRole::Repository);
            let control = read.control.unwrap();
            assert_eq!((control.name, control.state), (token(role).name, arguments.state.clone()));
            assert!(files.prepare(folder.path()).unwrap_err().message.contains("exists"));
            assert!(write_new(&files.config, "", 0o600).is_err());
            std::fs::remove_file(&files.config).unwrap();
        }
        assert!(config(&token(MoverRole::Proxy), &files, &repository).is_err());
        assert!(config(&token(MoverRole::Repository), &files, &proxy).is_err());
    }
}
