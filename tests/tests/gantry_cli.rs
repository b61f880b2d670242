//! The command gantry over gantryd's API, both as processes: what an administrator types from the
//! log-in to the restore point, with its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gantry_tests::gantryd::on_runtime;
use gantry_tests::program::control;
use gantry_tests::served::Served;
use serde_json::Value;

struct Gantry {
    login: PathBuf,
}

impl Gantry {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(control());
        command.args(arguments).env("GANTRY_LOGIN", &self.login).env_remove("GANTRY_CONFIG");
        command.output().expect("gantry runs")
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Refused with this exit code; what it said.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// The certificate of an authority that has signed nothing.
fn other_authority(path: &Path) -> PathBuf {
    let key = path.with_extension("key");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-subj", "/CN=another", "-days", "1"])
        .args(["-keyout", text(&key), "-out", text(path)])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path.to_owned()
}

#[test]
fn from_the_log_in_to_the_restore_point() {
    on_runtime(61, async |sphere| {
        let mut served = Served::new(sphere, &["web", "idle"]).await;
        let disk = sphere.watch("[vmfs0] idle/idle.vmdk");
        let gantry = Gantry { login: sphere.scratch.join("login.json") };
        let state = sphere.scratch.join("gantryd");
        let (ca, token) = (state.join("ca.pem"), state.join("admin.token"));
        let url = format!("https://{}", served.daemon.api);
        let not_yet = gantry.refused(&["job", "list"], 2);
        assert!(not_yet.contains("gantry login"), "{not_yet}");
        let open = sphere.scratch.write("open.token", std::fs::read(&token).expect("a token"));
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&open, readable).expect("opened");
        let refused =
            gantry.refused(&["login", &url, "--ca", text(&ca), "--token-file", text(&open)], 2);
        assert!(refused.contains("chmod 600"), "{refused}");
        let other = other_authority(&sphere.scratch.join("other.pem"));
        let refused =
            gantry.refused(&["login", &url, "--ca", text(&other), "--token-file", text(&token)], 4);
        assert!(refused.contains("--ca") && !refused.contains("running there"), "{refused}");
        let login = ["login", &url, "--ca", text(&ca), "--token-file", text(&token)];
        assert!(gantry.ok(&login).contains("admin"));

        for group in
            ["vcenter", "proxy", "repository", "job", "mover", "traffic", "credential", "token"]
        {
            let listed = gantry.ok(&[group, "list"]);
            assert!(listed.starts_with("NAME"), "{group}: {listed}");
            assert!(gantry.json(&[group, "list"])["items"].is_array(), "{group}");
        }
        assert!(gantry.ok(&["mover", "list"]).contains("repository-mover"));
        assert!(gantry.ok(&["vcenter", "test", "vcenter"]).contains("vCenter"));
        assert!(gantry.ok(&["job", "vms", "nightly"]).contains("idle"));
        assert!(gantry.ok(&["repository", "stat", "repository"]).contains("iB"));

        // A record goes out as JSON and comes in again, with references by name.
        let shown = gantry.ok(&["job", "show", "nightly"]);
        let file = sphere.scratch.write("job.json", &shown);
        gantry.ok(&["job", "add", "second", "--file", text(&file), "--set", "vcenter=vcenter"]);
        gantry.ok(&["job", "edit", "second", "-s", "selection.patterns=[\"idle\"]"]);
        let second: Value =
            serde_json::from_str(&gantry.ok(&["job", "show", "second"])).expect("JSON");
        assert_eq!(second["selection"]["patterns"], serde_json::json!(["idle"]));
        let used = gantry.refused(&["vcenter", "remove", "vcenter"], 2);
        assert!(used.contains("nightly"), "{used}");
        let unknown = gantry.refused(&["job", "show", "third"], 2);
        assert!(unknown.contains("nightly, second"), "{unknown}");
        gantry.refused(&["job", "edit", "second", "-s", "prioriti=5"], 2);

        // The log goes by while it runs, the summary stands at the end.
        let watched = gantry.ok(&["job", "start", "nightly", "--watch"]);
        for part in
            ["was committed", "finished success", "idle (attempt 1)", "bottleneck: ", "read "]
        {
            assert!(watched.contains(part), "{part}: {watched}");
        }
        assert!(gantry.ok(&["session", "list", "--job", "nightly"]).contains("success"));
        assert!(gantry.ok(&["session", "events", "last"]).contains("snapshot"));
        let stages = gantry.ok(&["session", "show", "last", "--stages"]);
        for stage in ["read", "scan", "hash", "query", "compress", "send", "durable"] {
            assert!(stages.contains(&format!("\n  {stage} ")), "{stage}: {stages}");
        }
        let shown = gantry.json(&["session", "show", "last"]);
        assert_eq!(shown["session"]["totals"]["vms_done"], 2);
        let only = gantry.ok(&["job", "start", "nightly", "--vm", "idle", "--full", "--watch"]);
        assert!(only.contains("idle (attempt 1)") && !only.contains("web (attempt"), "{only}");
        gantry.refused(&["job", "start", "nightly", "--vm", "large"], 2);

        let points = gantry.json(&["point", "list"]);
        assert_eq!(points["items"].as_array().map(Vec::len), Some(3), "{points}");
        let point = points["items"][0]["id"].as_str().expect("an id").to_owned();
        assert!(gantry.ok(&["point", "protect", &point]).contains("protected"));
        let refused = gantry.run(&["point", "delete", &point]);
        assert!(!refused.status.success(), "a protected point is not deleted");
        gantry.ok(&["point", "unprotect", &point]);
        assert!(gantry.ok(&["point", "config", &point]).contains("guest_id"));

        // Back to files, bit for bit, before anything more is written there.
        let folder = sphere.scratch.join("restored");
        std::fs::create_dir(&folder).expect("a folder");
        let name = points["items"]
            .as_array()
            .expect("a list")
            .iter()
            .find_map(|one| one["name"].as_str().filter(|name| name.starts_with("idle")));
        let name = name.expect("a point of idle");
        let restore =
            ["restore", "files", name, "--proxy", "proxy-1", "--folder", text(&folder), "--watch"];
        gantry.ok(&restore);
        let files: Vec<PathBuf> =
            std::fs::read_dir(&folder).expect("readable").flatten().map(|one| one.path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let restored = std::fs::read(&files[0]).expect("readable");
        let mut now = vec![0; restored.len()];
        sphere.sim.storage.read(disk, 0, &mut now).expect("readable");
        assert!(restored == now, "the restored disk differs");
        assert!(!gantry.run(&restore).status.success(), "a file is not overwritten");

        // And to a new machine.
        let mounts = serde_json::json!({ "vmfs0": sphere.datastore("vmfs0") });
        gantry.ok(&["proxy", "edit", "proxy-1", "-s", &format!("mounts={mounts}")]);
        let mut machine = vec!["restore", "vm", name, "--vcenter", "vcenter", "--as", "again"];
        machine.extend(["--datastore", "vmfs0", "--proxy", "proxy-1", "--watch"]);
        machine.extend(["--network", "VM Network=VM Network", "--host", "esx0.sim.example"]);
        gantry.ok(&machine);
        let taken = gantry.refused(&machine, 2);
        assert!(taken.contains("already in that folder"), "{taken}");
        let is_there = |state: &gantry_sim::sim::State| {
            state.site.machines.values().any(|machine| machine.name == "again")
        };
        assert!(is_there(&sphere.sim.lock()));

        // A session that fails says so by its exit code.
        gantry.ok(&["job", "edit", "second", "-s", "selection.patterns=[\"nobody*\"]"]);
        let failed = gantry.refused(&["job", "start", "second", "--watch"], 3);
        assert!(failed.contains("names no machine"), "{failed}");

        let made = sphere.scratch.join("viewer.token");
        gantry.ok(&["token", "create", "looker", "--role", "viewer", "--output", text(&made)]);
        let viewer = Gantry { login: sphere.scratch.join("viewer.json") };
        viewer.ok(&["login", &url, "--ca", text(&ca), "--token-file", text(&made)]);
        viewer.ok(&["job", "list"]);
        viewer.refused(&["job", "remove", "nightly"], 4);
        assert!(gantry.ok(&["mover", "invite", "proxy-9", "--role", "proxy"]).len() > 40);
        assert!(gantry.ok(&["mover", "invitations"]).contains("proxy-9"));
        gantry.ok(&["mover", "withdraw", "proxy-9"]);
        assert!(!gantry.ok(&["mover", "invitations"]).contains("proxy-9"));
        gantry.refused(&["mover", "withdraw", "proxy-9"], 2);
        // Other records are named by name.
        let after = "schedule={\"kind\":\"after\",\"job\":\"nightly\"}";
        let chosen = "proxies={\"kind\":\"chosen\",\"proxies\":[\"proxy-1\"]}";
        gantry.ok(&["job", "edit", "second", "-s", after, "-s", chosen]);
        let unknown =
            gantry.refused(&["job", "edit", "second", "-s", "proxies.proxies=[\"proxy-7\"]"], 2);
        assert!(unknown.contains("proxy-1"), "{unknown}");
        let verify =
            ["repository", "verify", "repository", "--checksums-only", "--rate", "500MB/s"];
        gantry.ok(&verify);
        gantry.ok(&["repository", "collect", "repository", "--dry-run", "--rewrite-max", "0"]);
        gantry.ok(&["config", "set", "session_days", "30"]);
        assert!(gantry.ok(&["config", "export"]).contains("session_days"));
        for shell in ["bash", "zsh", "fish"] {
            assert!(gantry.ok(&["completion", shell]).contains("gantry"), "{shell}");
        }
        let pages = sphere.scratch.join("man");
        gantry.ok(&["man", text(&pages)]);
        for page in ["gantry.1", "gantry-job-start.1", "gantryd.1"] {
            assert!(pages.join(page).exists(), "{page}");
        }
        served.stop_movers();
    });
}
