//! gantryd lost with its whole host, and made anew from the copy of its database in a repository.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_tests::gantryd::on_runtime;
use gantry_tests::program::{Running, daemon};
use gantry_tests::served::Served;

/// How long a change may take to be in the repository.
const COPIED_WITHIN: Duration = Duration::from_secs(60);

fn copies(served: &Served<'_>) -> Vec<PathBuf> {
    let folder = served.folder.join("repository/gantryd");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// The newest copy once it holds this text.
async fn copied(served: &Served<'_>, text: &str) -> PathBuf {
    let until = Instant::now() + COPIED_WITHIN;
    loop {
        let newest = copies(served).pop();
        let holds = |path: &PathBuf| {
            let copy = std::fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&copy).contains(text)
        };
        if let Some(newest) = newest.filter(holds) {
            return newest;
        }
        assert!(Instant::now() < until, "no copy holds {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_lost_gantryd_is_rebuilt_from_a_repository_and_goes_on_incrementally() {
    on_runtime(71, async |sphere| {
        let mut served = Served::new(sphere, &["idle"]).await;
        let disk = sphere.watch("[vmfs0] idle/idle.vmdk");
        let first = served.begin(false).await;
        assert_eq!(served.end(&first).await["result"], "success");
        let setting = serde_json::json!({ "value": 41 });
        served
            .client
            .call(gantry_http::Method::PUT, "settings/session_days", Some(&setting))
            .await
            .expect("set");
        let copy = copied(&served, "\"session_days\"").await;
        let text = std::fs::read(&copy).expect("readable");
        let secret = gantry_tests::vsphere::PASSWORD;
        assert!(!String::from_utf8_lossy(&text).contains(secret), "the password is readable");
        assert!(!String::from_utf8_lossy(&text).contains("PRIVATE KEY"), "the key is readable");

        // The host is gone; its administrator has kept the key file.
        // (Ended gently, so that movers need not wait for 30 s of silence.)
        served.daemon.process.terminate();
        while !served.daemon.process.is_over() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let state = sphere.scratch.join("gantryd");
        let key = sphere.scratch.join("kept.key");
        std::fs::copy(state.join("database/secrets.key"), &key).expect("kept");
        // What a client needs: people have both at home.
        let kept = ["ca.pem", "admin.token"]
            .map(|name| (name, std::fs::read(state.join(name)).expect("it is there")));
        std::fs::remove_dir_all(&state).expect("removable");

        let rebuild = |from: &PathBuf| {
            let mut command = Command::new(daemon());
            let config = sphere.scratch.join("gantryd.toml");
            command.args(["rebuild", "--json", "--config"]).arg(config);
            command.arg("--from").arg(from).arg("--key").arg(&key);
            Running::start(sphere.scratch.path(), &mut command).wait()
        };
        let repository = sphere.scratch.join("repository");
        let said = rebuild(&repository).ok().json();
        assert_eq!(said["authority"], true, "{said}");
        assert_eq!(said["secrets_lost"], serde_json::json!([]), "{said}");
        let again = rebuild(&repository);
        assert_eq!(again.code(), 2, "a state that is there is not overwritten: {}", again.err);
        assert!(again.err.contains("move it away"), "{}", again.err);

        for (name, bytes) in kept {
            std::fs::write(state.join(name), bytes).expect("written");
        }
        served.start_again();
        let settings = served.client.get("settings").await.expect("asked");
        assert!(settings.to_string().contains("41"), "{settings}");
        let second = served.begin(false).await;
        let record = served.end(&second).await;
        let log = served.log(&second).await;
        assert_eq!(record["result"], "success", "{log}");
        assert!(log.contains("changed since the base"), "{log}");
        assert_eq!(sphere.sim.storage.snapshots(), [], "snapshots are left");
        let runs = served.client.get(&format!("sessions/{second}/vms")).await.expect("asked");
        let point = runs["items"][0]["run"]["point"].as_str().expect("a point").to_owned();
        served.stop_movers();
        sphere.holds_now("idle", &point, 0, disk);
    });
}
