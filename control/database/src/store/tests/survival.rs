//! One process, kills in the middle, damaged files, files of older and newer versions.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;
use crate::DatabaseError;
use crate::store::migrate::NEWEST;

const FOLDER: &str = "GANTRY_DATABASE_TEST_FOLDER";
const CHILD: &str = "store::tests::survival::child_that_writes_until_it_is_killed";

#[tokio::test]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let error = Database::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Locked(_)), "{error}");
    drop(database);
    open(dir.path()).await;
}

/// Not a test of its own: what the next one kills. Says each session's id once it is durable.
#[tokio::test]
#[ignore = "started by the test beside it"]
async fn child_that_writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let database = open(Path::new(&folder)).await;
    loop {
        let own = session(NOW);
        let runs: Vec<VmRunRecord> = (0..5).map(|number| run(&own, number)).collect();
        database.create_session(&own, &runs).await.unwrap();
        database.append_events(&vec![event(&own, "x"); 50]).await.unwrap();
        println!("\ndurable {}", own.id);
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut told: Vec<Id> = Vec::new();
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--ignored", "--nocapture"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ids = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("durable ").and_then(|id| id.parse::<Id>().ok()));
        let before = told.len();
        for id in ids {
            told.push(id);
            if told.len() == before + 5 + 7 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(told.len() > before);
        let database = open(dir.path()).await;
        for id in &told {
            assert_eq!(database.vm_runs(*id).await.unwrap().len(), 5);
            assert_eq!(database.events(*id, 0, 100).await.unwrap().len(), 50);
        }
        for each in database.unfinished_sessions().await.unwrap() {
            assert_eq!(database.vm_runs(each.id).await.unwrap().len(), 5, "never a part");
        }
        database.close().await;
    }
}

#[tokio::test]
async fn damaged_and_newer_files_are_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gantry.sqlite");
    let database = open(dir.path()).await;
    for number in 0..50 {
        database.create(&vcenter(&format!("vc{number}")), &[], NOW).await.unwrap();
    }
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'future', TRUE, x'00', 0)",
    )
    .execute(&database.inner.writer)
    .await
    .unwrap();
    database.close().await;
    drop(database);
    let error = Database::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Newer { found: 99, .. }), "{error}");
    let good = std::fs::read(&file).unwrap();
    let mut bytes = good.clone();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0x55);
    std::fs::write(&file, &bytes).unwrap();
    let error = Database::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("gantry.sqlite") && error.to_string().contains("copy"));
    std::fs::write(
        &file,
        b"no database at all, but long enough for a header to be read from it, \
        so that the engine says what it is: one hundred bytes or more",
    )
    .unwrap();
    let error = Database::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Damaged { .. }), "{error}");
}

/// The files of one version of the schema.
fn golden(version: i64) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{version}"))
}

/// Makes the files that the next test opens; run once a schema version, never again.
#[tokio::test]
#[ignore = "writes into the source tree"]
async fn make_golden_files() {
    let folder = golden(NEWEST);
    std::fs::create_dir(&folder).unwrap();
    let database = open(&folder).await;
    let (vc, vault) = (vcenter("main"), repository("vault"));
    let secret = gantry_common::secret::Secret::new("golden secret");
    database.create(&vc, &[(vc.password(), secret)], NOW).await.unwrap();
    database.create(&vault, &[], NOW).await.unwrap();
    database.create(&job("nightly", &vc, &vault), &[], NOW).await.unwrap();
    let own = session(NOW);
    database.create_session(&own, &[run(&own, 1)]).await.unwrap();
    database.append_events(&[event(&own, "told")]).await.unwrap();
    database.close().await;
    std::fs::remove_file(folder.join("lock")).unwrap();
}

#[tokio::test]
async fn files_of_every_version_open() {
    for version in 1..=NEWEST {
        opens(version).await;
    }
}

async fn opens(version: i64) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gantry.sqlite", "secrets.key"] {
        std::fs::copy(golden(version).join(name), dir.path().join(name)).unwrap();
    }
    // A checkout does not keep the mode.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(dir.path().join("secrets.key"), mode).unwrap();
    let database = open(dir.path()).await;
    let job = database.by_name::<Job>("nightly").await.unwrap().value;
    let vc = database.get::<VCenter>(job.vcenter).await.unwrap().value;
    let secret = database.secret(&vc.password()).await.unwrap().unwrap();
    assert_eq!(secret.reveal(), "golden secret");
    let runs = database.unfinished_vm_runs().await.unwrap();
    assert_eq!(database.events(runs[0].session, 0, 10).await.unwrap()[0].1.text, "told");
}
