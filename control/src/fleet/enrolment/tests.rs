//! Invitations hold once, for their mover, for their time; certificates go to keys.

use std::path::Path;

use gantry_transport::{Identity, NewKey, Trust};
use tokio::task::JoinSet;

use super::*;
use crate::fleet::registry::MemoryRegistry;

const HOUR: Duration = Duration::from_secs(3600);
const NOW_MS: u64 = 1_800_000_000_000;

struct Place {
    enrolment: Enrolment,
    registry: Arc<MemoryRegistry>,
    _folder: tempfile::TempDir,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let names = ["gantryd.example".to_owned()];
    let authority = Arc::new(Authority::open(folder.path(), &names, NOW_MS).unwrap());
    let registry = Arc::new(MemoryRegistry::default());
    let addresses = Addresses { url: "https://127.0.0.1:1".into(), control: "127.0.0.1:2".into() };
    let enrolment = Enrolment::new(authority, registry.clone(), registry.clone(), addresses);
    Place { enrolment, registry, _folder: folder }
}

async fn invite(place: &Place, mover: &str, role: MoverRole) -> EnrolmentToken {
    let invited = place.enrolment.invite(mover, role, HOUR, NOW_MS).await.unwrap();
    let token: EnrolmentToken = invited.token.reveal().parse().unwrap();
    assert_eq!(sha256(token.secret.reveal()), invited.secret_sha256);
    assert!(!format!("{invited:?}{:?}", place.registry).contains(token.secret.reveal()));
    token
}

fn request(token: &EnrolmentToken) -> (EnrolRequest, NewKey) {
    let (mover, secret) = (token.mover.clone(), token.secret.clone());
    let (csr, key) = Identity::request("m").unwrap();
    (EnrolRequest { mover, secret, csr }, key)
}

async fn enroll(place: &Place, token: &EnrolmentToken) -> Result<Identity, Failure> {
    let (request, key) = request(token);
    let reply = place.enrolment.enroll(request, NOW_MS).await?;
    Ok(key.certified(Path::new("reply"), &reply.certificate)?)
}

#[tokio::test]
async fn an_invited_mover_gets_its_certificate_and_renews_it() {
    let place = place();
    let token = invite(&place, "store-1", MoverRole::Repository).await;
    assert_eq!((&*token.name, &*token.url), ("gantryd.example", "https://127.0.0.1:1"));
    assert!(!format!("{:?}", request(&token)).contains(token.secret.reveal()));
    let identity = enroll(&place, &token).await.unwrap();
    let known = place.registry.enrolled(identity.pin()).await.unwrap().unwrap();
    assert_eq!((&*known.name, known.role), ("store-1", MoverRole::Repository));
    let key = known.ticket_key.clone().unwrap();
    assert!(TicketKey::from_text(&key).is_some());
    assert!(!format!("{known:?}").contains(key.reveal()));
    let (csr, key) = identity.renewal_request("anything").unwrap();
    let renewal = RenewRequest { csr };
    let renewed = place.enrolment.renew(renewal.clone(), NOW_MS).await.unwrap();
    let renewed_identity = key.certified(Path::new("reply"), &renewed.certificate).unwrap();
    assert_eq!(renewed_identity.pin(), identity.pin());
    let trust = Trust::parse(Path::new("reply"), renewed.authority.as_bytes()).unwrap();
    let trust = trust.expect_name("store-1").unwrap();
    let (_, ends) = trust.validity(&renewed_identity).unwrap();
    trust.accepts(&renewed_identity, ends.as_millis() as u64 - 1000).unwrap();
    place.registry.revoke(identity.pin());
    let error = place.enrolment.renew(renewal, NOW_MS).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Refused);
}

#[tokio::test]
async fn an_invitation_holds_once_also_in_a_race() {
    let place = Arc::new(place());
    let token = invite(&place, "proxy-1", MoverRole::Proxy).await;
    let mut racers = JoinSet::new();
    for _ in 0..16 {
        let (place, token) = (place.clone(), token.clone());
        racers.spawn(async move { enroll(&place, &token).await });
    }
    let outcomes = racers.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(error, not_invited());
    }
}

#[tokio::test]
async fn what_is_refused_uses_no_invitation_up() {
    let place = place();
    let token = invite(&place, "proxy-1", MoverRole::Proxy).await;
    let (good, _) = request(&token);
    let long = Secret::new("x".repeat(1 << 20));
    for (bad, now_ms) in [
        (EnrolRequest { csr: "nothing".into(), ..good.clone() }, NOW_MS),
        (EnrolRequest { mover: "proxy-2".into(), ..good.clone() }, NOW_MS),
        (EnrolRequest { mover: "gantryd.example".into(), ..good.clone() }, NOW_MS),
        (EnrolRequest { secret: Secret::new("guess"), ..good.clone() }, NOW_MS),
        (EnrolRequest { secret: long, ..good.clone() }, NOW_MS),
        (good.clone(), NOW_MS + HOUR.as_millis() as u64),
    ] {
        let error = place.enrolment.enroll(bad, now_ms).await.unwrap_err();
        assert!(!error.message.contains(token.secret.reveal()), "{error}");
    }
    place.enrolment.enroll(good.clone(), NOW_MS).await.unwrap();
    // Replayed: the same request, and the same secret with another key.
    assert_eq!(place.enrolment.enroll(good, NOW_MS).await.unwrap_err(), not_invited());
    assert_eq!(enroll(&place, &token).await.unwrap_err(), not_invited());
}

#[tokio::test]
async fn a_new_invitation_withdraws_the_older_and_a_new_key_the_older_key() {
    let place = place();
    let older = invite(&place, "proxy-1", MoverRole::Proxy).await;
    let newer = invite(&place, "proxy-1", MoverRole::Proxy).await;
    assert!(enroll(&place, &older).await.is_err());
    let first = enroll(&place, &newer).await.unwrap();
    let again = invite(&place, "proxy-1", MoverRole::Proxy).await;
    let second = enroll(&place, &again).await.unwrap();
    assert_eq!(place.registry.enrolled(first.pin()).await, Ok(None));
    assert!(place.registry.enrolled(second.pin()).await.unwrap().is_some());
    for (name, valid) in [("gantryd.example", HOUR), ("proxy-3", HOUR * 1000)] {
        assert!(place.enrolment.invite(name, MoverRole::Proxy, valid, NOW_MS).await.is_err());
    }
}
