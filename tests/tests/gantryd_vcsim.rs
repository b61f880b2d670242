//! The demonstration's road against vcsim, which knows no changed blocks: full, changes in the guest,
//! incremental by comparison with a proxy that is killed, restores to files, compared.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_tests::compare::assert_same;
use gantry_tests::gantryd::runtime;
use gantry_tests::images;
use gantry_tests::scratch::Scratch;
use gantry_tests::served::{Reached, Served};
use gantry_tests::vcsim::small_disk::{SmallDisk, VM};
use gantry_tests::vcsim::{PASSWORD, USER, Vcsim};
use serde_json::{Value, json};

/// Waits until a proxy carries out a task; its number.
async fn busy_proxy(served: &Served<'_>) -> usize {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let movers = served.client.get("movers").await.expect("asked");
        let names = movers["items"].as_array().into_iter().flatten();
        let busy = names.filter(|mover| mover["tasks_running"].as_u64() > Some(0));
        let mut busy = busy.filter_map(|mover| mover["mover"]["name"].as_str());
        if let Some(name) = busy.find_map(|name| name.strip_prefix("proxy-")) {
            return name.parse().expect("a number");
        }
        assert!(Instant::now() < until, "no proxy has anything to do");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The newest point's only disk, restored to a new folder of a proxy.
async fn restored(served: &Served<'_>, name: &str, proxy: &str, folder: &Path) -> PathBuf {
    std::fs::create_dir(folder).expect("a folder");
    let proxies = served.client.get("proxies").await.expect("asked");
    let mut proxies = proxies["items"].as_array().into_iter().flatten();
    let proxy = proxies.find(|one| one["value"]["name"] == proxy || one["name"] == proxy);
    let proxy = proxy.expect("a proxy");
    let id = [&proxy["id"], &proxy["value"]["id"]].into_iter().find(|id| id.is_string());
    let asked = json!({
        "repository": served.repository, "name": name,
        "target": { "kind": "files", "proxy": id, "folder": folder },
    });
    let begun = served.client.post("restores", &asked).await.expect("it begins");
    let session = begun["id"].as_str().expect("an id").to_owned();
    let record = served.end(&session).await;
    assert_eq!(record["result"], "success", "{}", served.log(&session).await);
    let mut files = std::fs::read_dir(folder).expect("readable").flatten().map(|one| one.path());
    files.next().expect("a file")
}

async fn point_name(served: &Served<'_>) -> String {
    let points = served.client.get("points").await.expect("asked");
    let name = |point: &Value| point["name"].as_str().map(str::to_owned);
    points["items"].as_array().and_then(|all| name(all.first()?)).expect("a point")
}

#[test]
fn without_changed_blocks_the_same_road_is_gone_by_comparison() {
    let (vcsim, scratch) = (Vcsim::start(1), Scratch::new());
    runtime().block_on(async {
        let disk = SmallDisk::make(&vcsim, 6).await;
        let vcenter = Reached {
            url: format!("https://127.0.0.1:{}", vcsim.port),
            user: USER,
            password: PASSWORD,
            thumbprint: vcsim.thumbprint.clone(),
        };
        let mut served = Served::of(scratch.path(), &vcenter, &[VM]).await;
        let first = served.begin(false).await;
        let record = served.end(&first).await;
        let log = served.log(&first).await;
        assert!(matches!(record["result"].as_str(), Some("success" | "warning")), "{log}");
        let name = point_name(&served).await;
        let file = restored(&served, &name, "proxy-1", &scratch.join("first")).await;
        assert_same(&disk.flat, &file);

        images::overwrite(&disk.flat, (5 << 20) + 512, &[7; 4096]);
        let second = served.begin(false).await;
        let killed = busy_proxy(&served).await;
        // Its task has just begun: with the repository's mover halted it cannot end before the kill.
        served.movers[0].halt(true);
        served.movers.remove(killed).kill_hard();
        served.movers[0].halt(false);
        let record = served.end(&second).await;
        let log = served.log(&second).await;
        assert!(matches!(record["result"].as_str(), Some("success" | "warning")), "{log}");
        assert!(log.contains("is gone"), "{log}");
        assert!(log.contains("no change id"), "{log}");
        let skipped = &record["totals"]["more"]["bytes_skipped"];
        assert_eq!(skipped["unchanged"], 15 << 20, "{record:#}");
        let other = if killed == 1 { "proxy-2" } else { "proxy-1" };
        let file = restored(&served, &name, other, &scratch.join("second")).await;
        assert_same(&disk.flat, &file);
        served.stop_movers();
    });
}
