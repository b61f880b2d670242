//! Names, versions, references, use; tokens, enrolments, movers.

use super::*;
use crate::DatabaseError;
use crate::store::{Entity, Page};

#[tokio::test]
async fn records_are_kept_found_changed_with_their_version_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let mut own = vcenter("main");
    database.create(&own, &[], NOW).await.unwrap();
    let found = database.by_name::<VCenter>("main").await.unwrap();
    assert_eq!((found.version, found.created_ms, &found.value), (1, NOW, &own));
    let error = database.create(&vcenter("main"), &[], NOW).await.unwrap_err();
    assert!(matches!(&error, DatabaseError::Taken { .. }), "{error}");
    own.user = "other".to_owned();
    assert_eq!(database.update(&own, 1, NOW + 5).await.unwrap(), 2);
    let error = database.update(&own, 1, NOW).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Stale { expected: 1, found: 2, .. }), "{error}");
    let error = database.get::<Proxy>(own.id).await.unwrap_err();
    assert!(matches!(error, DatabaseError::NotFound { what: Proxy::KIND, .. }), "another kind");
    assert_eq!(database.get::<VCenter>(own.id).await.unwrap().changed_ms, NOW + 5);
    let wrong = VCenter { url: "ftp://x".to_owned(), ..vcenter("bad") };
    let error = database.create(&wrong, &[], NOW).await.unwrap_err();
    assert!(error.is_refusal() && error.to_string().starts_with("url"), "{error}");
    database.create(&vcenter("second"), &[], NOW).await.unwrap();
    let first = database.list::<VCenter>(&Page::first(1)).await.unwrap();
    assert_eq!(first[0].value.name, "main");
    let page = Page { after: Some("main".to_owned()), limit: 10 };
    let rest = database.list::<VCenter>(&page).await.unwrap();
    assert_eq!(rest.iter().map(|each| each.value.name.as_str()).collect::<Vec<_>>(), ["second"]);
    database.delete::<VCenter>(own.id).await.unwrap();
    let error = database.update(&own, 2, NOW).await.unwrap_err();
    assert!(matches!(error, DatabaseError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn what_is_used_stays_and_what_is_named_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let (vc, vault) = (vcenter("main"), repository("vault"));
    let mut first = job("first", &vc, &vault);
    let error = database.create(&first, &[], NOW).await.unwrap_err();
    assert!(matches!(&error, DatabaseError::Reference { field, .. } if field == "repository"));
    database.create(&vc, &[], NOW).await.unwrap();
    database.create(&vault, &[], NOW).await.unwrap();
    first.repository = vc.id;
    assert!(database.create(&first, &[], NOW).await.is_err(), "a vCenter is no repository");
    first.repository = vault.id;
    database.create(&first, &[], NOW).await.unwrap();
    let error = database.delete::<VCenter>(vc.id).await.unwrap_err();
    assert_eq!(error.to_string(), "vcenter main is used by job first; change those first");
    let mut second = job("second", &vc, &vault);
    second.schedule = Schedule::After { job: first.id };
    database.create(&second, &[], NOW).await.unwrap();
    first.schedule = Schedule::After { job: second.id };
    let error = database.update(&first, 1, NOW).await.unwrap_err();
    assert!(error.to_string().contains("leads back"), "{error}");
    assert_eq!(database.get::<Job>(first.id).await.unwrap().version, 1, "nothing was changed");
    database.delete::<Job>(second.id).await.unwrap();
    database.delete::<Job>(first.id).await.unwrap();
    database.delete::<VCenter>(vc.id).await.unwrap();
}

#[tokio::test]
async fn enrolments_are_spent_once_whoever_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let (hash, role) = ("ab".repeat(32), MoverRole::Repository);
    let enrolment = EnrolmentRecord {
        hash: hash.clone(),
        mover: "r1".to_owned(),
        role,
        created_ms: NOW,
        expires_ms: NOW + 10,
        used_ms: None,
    };
    database.create_enrolment(&enrolment, NOW).await.unwrap();
    let mover = |byte: u8| MoverRecord {
        pin: gantry_common::ids::PeerId([byte; 32]),
        name: "claims another".to_owned(),
        role: MoverRole::Proxy,
        enrolled_ms: NOW,
        revoked_ms: None,
        certificate_expires_ms: NOW + 1000,
    };
    let late = database.enrol(&hash, &mover(1), NOW + 10).await.unwrap_err();
    assert!(matches!(late, DatabaseError::Spent("has ended")), "{late}");
    let mut tries = tokio::task::JoinSet::new();
    for byte in 0..8 {
        let (database, hash, mover) = (database.clone(), hash.clone(), mover(byte));
        tries.spawn(async move { database.enrol(&hash, &mover, NOW + 1).await });
    }
    let done = tries.join_all().await;
    assert_eq!(done.iter().filter(|each| each.is_ok()).count(), 1);
    let movers = database.movers().await.unwrap();
    assert_eq!((movers.len(), movers[0].name.as_str(), movers[0].role), (1, "r1", role));
    let mut second = MoverRecord { name: "r1".to_owned(), ..mover(9) };
    let error = database.create_mover(&second).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Taken { .. }), "{error}");
    second.revoked_ms = Some(NOW);
    database.create_mover(&second).await.unwrap();
    assert_eq!(database.mover(second.pin).await.unwrap(), Some(second.clone()));
    second.revoked_ms = None;
    assert!(database.update_mover(&second).await.is_err(), "the name is taken again");
    assert!(database.update_mover(&mover(77)).await.is_err(), "there is none");
}

#[tokio::test]
async fn of_two_administrators_who_delete_each_other_s_token_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let token = |name: &str, expires_ms| TokenRecord {
        id: Id::draw(NOW),
        name: name.to_owned(),
        role: Role::Admin,
        hash: name.repeat(64),
        created_ms: NOW,
        expires_ms,
        last_used_ms: None,
    };
    let [one, other, ended] = [token("a", None), token("b", None), token("c", Some(NOW))];
    for token in [&one, &other, &ended] {
        database.create_token(token).await.unwrap();
    }
    let gone =
        tokio::join!(database.delete_token(one.id, NOW), database.delete_token(other.id, NOW));
    assert_ne!(gone.0.unwrap(), gone.1.unwrap(), "exactly one goes");
    assert!(database.delete_token(ended.id, NOW).await.unwrap(), "it lets nobody in any more");
    assert_eq!(database.tokens(&Page::first(5)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn tokens_and_settings_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let token = TokenRecord {
        id: Id::draw(NOW),
        name: "ci".to_owned(),
        role: Role::Operator,
        hash: "cd".repeat(32),
        created_ms: NOW,
        expires_ms: Some(NOW + 1),
        last_used_ms: None,
    };
    database.create_token(&token).await.unwrap();
    assert!(
        database.create_token(&TokenRecord { id: Id::draw(NOW), ..token.clone() }).await.is_err()
    );
    assert_eq!(database.token_last_used(token.id).await.unwrap(), None);
    database.touch_token(token.id, NOW + 7).await.unwrap();
    assert_eq!(database.token_last_used(token.id).await.unwrap(), Some(NOW + 7));
    assert_eq!(database.token_last_used(Id::draw(NOW)).await.unwrap(), None);
    let found = database.token_by_hash(&token.hash).await.unwrap().unwrap();
    assert_eq!((found.last_used_ms, found.role), (Some(NOW + 7), Role::Operator));
    assert!(found.is_valid_at(NOW) && !found.is_valid_at(NOW + 1));
    assert_eq!(database.tokens(&Page::first(5)).await.unwrap().len(), 1);
    assert!(database.delete_token(token.id, NOW).await.unwrap());
    assert_eq!(database.token_by_hash(&token.hash).await.unwrap(), None);
    assert!(database.delete_token(token.id, NOW).await.is_err());
    let (name, value) = (Setting::SESSION_DAYS.to_owned(), json!(0));
    let mut setting = Setting { name, value };
    assert!(database.set_setting(&setting).await.is_err());
    setting.value = json!(5);
    database.set_setting(&setting).await.unwrap();
    assert_eq!(database.settings().await.unwrap(), [setting]);
}
