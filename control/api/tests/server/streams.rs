//! Live streams: events in order, numbers, the end, a resumed one.

use axum::http::{Method, StatusCode};
use gantry_api::model::Role;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use crate::rig::{Rig, request};

/// The whole of a stream, as (event, id) and its text.
async fn followed(rig: &Rig, path: &str, last: Option<&str>) -> (Vec<(String, String)>, String) {
    let mut sent = request(Method::GET, path, Some(Role::Viewer), "");
    if let Some(last) = last {
        sent.headers_mut().insert("last-event-id", last.parse().expect("a value"));
    }
    let response = rig.router.clone().oneshot(sent).await.expect("never fails");
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = response.into_body().collect().await.expect("it ends").to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let field = |block: &str, name: &str| {
        let found = block.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_default().trim().to_owned()
    };
    let blocks = text.split("\n\n").filter(|block| block.contains("event:"));
    (blocks.map(|block| (field(block, "event:"), field(block, "id:"))).collect(), text)
}

#[tokio::test]
async fn a_stream_tells_events_and_numbers_until_the_end_and_resumes_behind_the_last() {
    let rig = Rig::new();
    let session = rig.start(rig.job().await).await;
    let path = format!("/api/v1/sessions/{session}/stream");
    let memory = rig.memory.clone();
    let carried_on = tokio::spawn(async move {
        for step in 0..600 {
            memory.advance(session, 1 << 10, &format!("step {step}"));
            if step % 100 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            }
        }
        memory.finish(session);
    });
    let (told, text) = followed(&rig, &path, None).await;
    carried_on.await.expect("no panic");
    let numbers: Vec<u64> = told.iter().filter_map(|(_, id)| id.parse().ok()).collect();
    assert_eq!(numbers, (1..=602).collect::<Vec<_>>());
    assert!(told.iter().filter(|(kind, _)| kind == "progress").count() >= 2, "{told:?}");
    assert_eq!(told.last().map(|(kind, _)| kind.as_str()), Some("end"));
    assert!(text.contains("step 599"));
    let (told, _) = followed(&rig, &path, Some("600")).await;
    let numbers: Vec<&str> = told.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(numbers, ["601", "602", "", ""]);
    let mut sent = request(Method::GET, &path, Some(Role::Viewer), "");
    sent.headers_mut().insert("last-event-id", "-1".parse().expect("a value"));
    assert_eq!(rig.send(sent).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn streams_are_limited_and_end_when_the_server_stops() {
    let rig = Rig::new();
    let session = rig.start(rig.job().await).await;
    let path = format!("/api/v1/sessions/{session}/stream");
    let mut open = Vec::new();
    for _ in 0..gantry_api::limits::STREAMS_MAX {
        let sent = request(Method::GET, &path, Some(Role::Viewer), "");
        open.push(rig.router.clone().oneshot(sent).await.expect("never fails"));
    }
    let (status, _) = rig.send(request(Method::GET, &path, Some(Role::Viewer), "")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    drop(open.pop());
    let sent = request(Method::GET, &path, Some(Role::Viewer), "");
    let last = rig.router.clone().oneshot(sent).await.expect("never fails");
    assert_eq!(last.status(), StatusCode::OK);
    rig.stop.send(true).expect("somebody watches");
    let body = tokio::time::timeout(std::time::Duration::from_secs(5), last.into_body().collect());
    body.await.expect("it ends").expect("a body");
}
