//! Who may do what: every route with every role.

use axum::http::{Method, StatusCode};
use gantry_api::access::Access;
use gantry_api::model::Role;
use gantry_api::routes;

use crate::rig::{Rig, request};

/// The path with something in place of its names.
fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| match part {
        "{pin}" => "ab".repeat(32),
        name if name.starts_with('{') => "ab".repeat(16),
        part => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_route_lets_in_whom_it_names_and_nobody_else() {
    let rig = Rig::new();
    let routes = routes::all();
    assert!(routes.len() > 50, "{} routes", routes.len());
    for route in &routes {
        let path = filled(&route.path);
        for role in [None, Some(Role::Viewer), Some(Role::Operator), Some(Role::Admin)] {
            let sent = request(route.method.clone(), &path, role, "{}");
            let (status, answer) = rig.send(sent).await;
            let shown = format!("{} {path} as {role:?}: {status} {answer}", route.method);
            match (route.access.allows(role), role) {
                (true, _) => {
                    assert_ne!(status, StatusCode::UNAUTHORIZED, "{shown}");
                    assert_ne!(status, StatusCode::FORBIDDEN, "{shown}");
                    assert!(!status.is_server_error(), "{shown}");
                }
                (false, None) => assert_eq!(status, StatusCode::UNAUTHORIZED, "{shown}"),
                (false, Some(_)) => assert_eq!(status, StatusCode::FORBIDDEN, "{shown}"),
            }
        }
    }
}

#[test]
fn only_looking_is_open_to_viewers_and_only_enrolment_and_health_to_everybody() {
    for route in routes::all() {
        let (path, looks) = (route.path.as_str(), route.method == Method::GET);
        match route.access {
            Access::Public => {
                let open = ["/healthz", "/api/v1/enroll", "/api/v1/enroll/renew"];
                assert!(open.contains(&path), "{path}");
            }
            access => assert!(looks || !access.allows(Some(Role::Viewer)), "{path}"),
        }
    }
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_then_slowed_down() {
    let rig = Rig::new();
    let attempt = async |token: &str| {
        let mut sent = request(Method::GET, "/api/v1/about", None, "");
        let bearer = format!("Bearer {token}").parse().expect("a value");
        sent.headers_mut().insert("authorization", bearer);
        rig.send(sent).await
    };
    for _ in 0..gantry_api::limits::LOGIN_FAILURES_BURST {
        let (status, problem) = attempt("gantry_0000").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{problem}");
        assert!(problem["next"].as_str().is_some_and(|next| next.contains("token create")));
    }
    let (status, problem) = attempt("gantry_0000").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{problem}");
    assert!(problem["retry_after_seconds"].as_u64().is_some_and(|seconds| seconds >= 1));
}
