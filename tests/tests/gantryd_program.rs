//! The program gantryd as a process, over nothing but its REST API: configured, movers enrolled, a job
//! run, points listed; stopped and started again; killed with -9 again and again; no secret anywhere
//! where it does not belong.

use gantry_http::Method;
use gantry_tests::gantryd::on_runtime;
use gantry_tests::served::Served;
use gantry_tests::vsphere::PASSWORD;
use serde_json::json;

#[test]
fn a_service_is_set_up_backs_up_and_survives_its_restart() {
    on_runtime(41, async |sphere| {
        let mut served = Served::new(sphere, &["web", "idle"]).await;
        let disk = sphere.watch("[vmfs0] idle/idle.vmdk");
        let session = served.begin(false).await;
        let again = format!("jobs/{}/start", served.job);
        let again = served.client.post(&again, &json!({})).await.expect_err("it runs already");
        assert!(again.message.contains("runs already"), "{again}");
        let mut kinds = std::collections::BTreeSet::new();
        let follow = served.client.follow(&session, |kind, _| {
            kinds.insert(kind.to_owned());
        });
        follow.await.expect("followed to its end");
        assert!(["end", "event", "progress"].iter().all(|kind| kinds.contains(*kind)), "{kinds:?}");
        let record = served.end(&session).await;
        assert_eq!(record["result"], "success", "{}", served.log(&session).await);
        let totals = &record["totals"];
        let skipped = totals["more"]["bytes_skipped"].as_object().expect("reasons");
        let skipped: u64 = skipped.values().filter_map(|bytes| bytes.as_u64()).sum();
        let sent = totals["more"]["bytes_sent_raw"].as_u64().expect("a number");
        assert_eq!(totals["processed_bytes"].as_u64(), Some(skipped + sent), "{totals}");
        assert!(totals["more"]["bottleneck"].is_string(), "{totals}");
        let vms = served.client.get(&format!("sessions/{session}/vms")).await.expect("machines");
        let items = vms["items"].as_array().expect("a list");
        let disks: usize = items.iter().map(|vm| vm["tasks"].as_array().map_or(0, Vec::len)).sum();
        assert_eq!((items.len(), disks), (2, 3), "{vms}");
        for task in items.iter().flat_map(|vm| vm["tasks"].as_array().expect("disks")) {
            assert_eq!(task["state"], "durable");
            assert!(task["proxy"].is_string() && task["mode"].is_string(), "{task}");
            assert!(task["numbers"]["bytes_processed"].as_u64().expect("a number") > 0, "{task}");
        }
        let points = served.client.get("points").await.expect("points");
        assert_eq!(points["items"].as_array().map(Vec::len), Some(2), "{points}");
        let verify = format!("repositories/{}/verify", served.repository);
        let verify = served.client.post(&verify, &json!({})).await.expect("it begins");
        let verified = served.end(verify["id"].as_str().expect("an id")).await;
        assert_eq!(verified["result"], "success", "{verified}");

        // As systemd stops and starts it.
        served.daemon.process.terminate();
        while !served.daemon.process.is_over() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        served.start_again();
        let shown = served.client.get(&format!("sessions/{session}")).await.expect("it is kept");
        assert_eq!(shown["result"], "success");
        let session = served.begin(false).await;
        let record = served.end(&session).await;
        assert_eq!(record["result"], "success", "{}", served.log(&session).await);
        assert_eq!(sphere.sim.storage.snapshots(), [], "snapshots are left");

        look_for_secrets(&served, &session).await;
        let point = point_of(&served, &session, "idle").await;
        served.stop_movers();
        sphere.holds_now("idle", &point, 0, disk);
    });
}

async fn point_of(served: &Served<'_>, session: &str, vm: &str) -> String {
    let vms = served.client.get(&format!("sessions/{session}/vms")).await.expect("machines");
    let items = vms["items"].as_array().expect("a list");
    let run = items.iter().filter(|one| one["run"]["vm"] == vm);
    let point = run.filter_map(|one| one["run"]["point"].as_str()).next_back();
    point.unwrap_or_else(|| panic!("no point of {vm}: {vms}")).to_owned()
}

/// The vCenter's password and the administrator's token are in no file but the one that is meant for
/// it, in no answer, no log and no process's arguments or environment.
async fn look_for_secrets(served: &Served<'_>, session: &str) {
    let state = served.folder.join("gantryd");
    let token = std::fs::read_to_string(state.join("admin.token")).expect("the token");
    let secrets = [PASSWORD.as_bytes(), token.trim().as_bytes()];
    let finds = |bytes: &[u8]| {
        secrets.iter().any(|secret| bytes.windows(secret.len()).any(|window| window == *secret))
    };
    let mut folders = vec![served.folder.to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("readable").flatten() {
            let path = entry.path();
            if entry.file_type().expect("a type").is_dir() {
                folders.push(path);
            } else if path != state.join("admin.token")
                && entry.file_type().is_ok_and(|kind| kind.is_file())
            {
                looked_at += 1;
                let is_ours = !path.starts_with(served.folder.join("repository"));
                assert!(
                    !is_ours || !finds(&std::fs::read(&path).unwrap_or_default()),
                    "a secret in {}",
                    path.display()
                );
            }
        }
    }
    assert!(looked_at > 10, "files were looked at");
    let events = format!("sessions/{session}/events?limit=500");
    for path in ["vcenters", "tokens", "export", "settings", "movers", "jobs", "sessions", &events]
    {
        let answer = served.client.get(path).await.expect("an answer").to_string();
        assert!(!finds(answer.as_bytes()), "a secret in the answer to {path}");
    }
    let mut pids: Vec<u32> = served.movers.iter().map(|process| process.id()).collect();
    pids.push(served.daemon.process.id());
    for pid in pids {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).expect("it runs");
            assert!(!finds(&bytes), "a secret in /proc/{pid}/{file}");
        }
    }
}

#[test]
fn nobody_without_a_token_gets_anything_and_a_viewer_changes_nothing() {
    on_runtime(42, async |sphere| {
        use gantry_common::secret::Secret;
        use gantry_control::client::Client;
        use gantry_tests::served::{Daemon, login};
        let daemon = Daemon::start(sphere.scratch.path(), None);
        let first = login(sphere.scratch.path(), &daemon);
        let admin = Client::new(&first).expect("a client");
        let made = json!({ "name": "looker", "role": "viewer" });
        let made = admin.post("tokens", &made).await.expect("a token");
        let with = |token: &str| {
            let mut login = first.clone();
            login.token = Secret::new(token);
            Client::new(&login).expect("a client")
        };
        let viewer = with(made["text"].as_str().expect("shown once"));
        viewer.get("jobs").await.expect("a viewer looks");
        let path = format!("tokens/{}", made["token"]["id"].as_str().expect("an id"));
        for (method, path) in [
            (Method::POST, "vcenters"),
            (Method::POST, "enrolments"),
            (Method::DELETE, path.as_str()),
            (Method::GET, "export"),
        ] {
            let refused = viewer.call(method, path, Some(&json!({}))).await.expect_err("refused");
            assert!(refused.message.contains("role"), "{path}: {refused}");
        }
        let last = admin.get("tokens").await.expect("listed")["items"].clone();
        let own = last.as_array().expect("a list").iter().find(|one| one["role"] == "admin");
        let path = format!("tokens/{}", own.expect("it is")["id"].as_str().expect("an id"));
        let kept = admin.call(Method::DELETE, &path, None).await.expect_err("the last one");
        assert!(kept.message.contains("last administrator"), "{kept}");
        admin.get("jobs").await.expect("still let in");
        for token in ["", "gantry_0000", "x"] {
            let nobody = with(token);
            for path in ["jobs", "sessions", "points", "about", "openapi.json"] {
                nobody.get(path).await.expect_err("refused");
            }
        }
    });
}
