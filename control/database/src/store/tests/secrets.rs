//! Secrets: nowhere in the open, bound to their place, moved to a new key; copies with and without it.

use std::os::unix::fs::PermissionsExt;

use gantry_common::secret::Secret;

use super::*;
use crate::DatabaseError;

const WORD: &str = "correct-horse-battery-staple";

fn holds(folder: &Path, word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap();
        if bytes.windows(word.len()).any(|part| part == word.as_bytes()) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

#[tokio::test]
async fn secrets_stand_nowhere_in_the_open() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let own = vcenter("findable-name");
    database.create(&own, &[(own.password(), Secret::new(WORD))], NOW).await.unwrap();
    assert!(!holds(dir.path(), "findable-name").is_empty(), "the search finds what is there");
    assert_eq!(holds(dir.path(), WORD), Vec::<String>::new());
    let hexed = crate::store::rows::hex(WORD.as_bytes());
    assert_eq!(holds(dir.path(), &hexed), Vec::<String>::new());
    assert_eq!(database.secret(&own.password()).await.unwrap(), Some(Secret::new(WORD)));
    let shown = format!("{database:?} {:?}", database.secret(&own.password()).await);
    assert!(!shown.contains(WORD));
    let bytes = database.export(NOW).await.unwrap();
    assert!(!String::from_utf8(bytes).unwrap().contains(WORD));
    for name in ["gantry.sqlite", "gantry.sqlite-wal", "gantry.sqlite-shm", "secrets.key", "lock"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    database.delete::<VCenter>(own.id).await.unwrap();
    assert_eq!(database.secret(&own.password()).await.unwrap(), None, "it went with its owner");
    let bad = SecretSlot::Named("a\0b".to_owned());
    assert!(database.set_secret(&bad, &Secret::new("x")).await.is_err());
    let long = Secret::new("x".repeat(100_000));
    let error = database.set_secret(&SecretSlot::Named("k".to_owned()), &long).await.unwrap_err();
    assert!(!error.to_string().contains("xxx"));
}

#[tokio::test]
async fn rows_cannot_be_swapped_or_changed() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let slots = ["a", "b"].map(|name| SecretSlot::Named(name.to_owned()));
    for slot in &slots {
        database.set_secret(slot, &Secret::new(WORD)).await.unwrap();
    }
    let forge = "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE owner_id = 'a')";
    sqlx::query(forge).execute(&database.inner.writer).await.unwrap();
    assert!(database.secret(&slots[0]).await.unwrap().is_some());
    let error = database.secret(&slots[1]).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Unsealable(_)), "{error}");
    assert!(database.rekey().await.is_err(), "nothing is lost in silence");
    assert!(database.secret(&slots[0]).await.unwrap().is_some());
    assert!(database.delete_secret(&slots[1]).await.unwrap());
}

#[tokio::test]
async fn a_new_key_replaces_the_old_one_also_after_a_crash_between() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let slot = SecretSlot::Named("authority-key".to_owned());
    database.set_secret(&slot, &Secret::new(WORD)).await.unwrap();
    let file = dir.path().join("secrets.key");
    let old = std::fs::read_to_string(&file).unwrap();
    database.rekey().await.unwrap();
    let new = std::fs::read_to_string(&file).unwrap();
    assert!(new != old && new.lines().count() == 1);
    assert_eq!(database.secret(&slot).await.unwrap(), Some(Secret::new(WORD)));
    database.close().await;
    drop(database);
    // As a crash leaves it after the key was drawn and before rows were moved.
    let drawn = old.replace(&old[17..25], "01234567");
    std::fs::write(&file, format!("{drawn}{new}")).unwrap();
    let database = open(dir.path()).await;
    assert_eq!(database.secret(&slot).await.unwrap(), Some(Secret::new(WORD)));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), drawn, "the older key is gone");
    database.close().await;
    drop(database);
    let refused = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Database::open(dir.path())
    };
    let error = refused(&new).await.unwrap_err();
    assert!(error.to_string().contains("another database"), "{error}");
    assert!(refused("rubbish").await.is_err());
    std::fs::remove_file(&file).unwrap();
    let error = Database::open(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    std::fs::write(&file, drawn).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    let error = Database::open(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[tokio::test]
async fn a_copy_rebuilds_everything_and_the_secrets_with_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let (vc, vault) = (vcenter("main"), repository("vault"));
    let (first, mut second) = (job("first", &vc, &vault), job("a second", &vc, &vault));
    second.schedule = Schedule::After { job: first.id };
    database.create(&vc, &[(vc.password(), Secret::new(WORD))], NOW).await.unwrap();
    database.create(&vault, &[], NOW).await.unwrap();
    database.create(&first, &[], NOW).await.unwrap();
    database.create(&second, &[], NOW).await.unwrap();
    let own = session(NOW);
    let one = run(&own, 1);
    database.create_session(&own, std::slice::from_ref(&one)).await.unwrap();
    let bytes = database.export(NOW + 5).await.unwrap();
    for with_key in [true, false] {
        let new = tempfile::tempdir().unwrap();
        if with_key {
            let name = "secrets.key";
            std::fs::copy(dir.path().join(name), new.path().join(name)).unwrap();
        }
        let (rebuilt, imported) = Database::import(new.path(), &bytes).await.unwrap();
        assert_eq!(imported.created_ms, NOW + 5);
        let secret = rebuilt.secret(&vc.password()).await.unwrap();
        assert_eq!(secret, with_key.then(|| Secret::new(WORD)));
        assert_eq!(imported.secrets_lost.len(), usize::from(!with_key));
        assert_eq!(rebuilt.get::<Job>(second.id).await.unwrap().value, second);
        assert_eq!(rebuilt.unfinished_vm_runs().await.unwrap(), std::slice::from_ref(&one));
        assert!(rebuilt.delete::<VCenter>(vc.id).await.is_err(), "uses came too");
        rebuilt.close().await;
        drop(rebuilt);
        let error = Database::import(new.path(), &bytes).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Taken { .. }), "{error}");
    }
}

#[tokio::test]
async fn rubbish_is_no_copy() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    database.create(&vcenter("main"), &[], NOW).await.unwrap();
    let good = database.export(NOW).await.unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut refused = 0;
    for round in 0..40 {
        let mut bytes = good.clone();
        match round % 2 {
            0 => bytes.truncate(random.usize(..bytes.len())),
            _ => {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
        }
        let new = tempfile::tempdir().unwrap();
        refused += u32::from(Database::import(new.path(), &bytes).await.is_err());
    }
    assert!(refused >= 20, "every cut copy is refused: {refused}");
}
