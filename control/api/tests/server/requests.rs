//! Requests that are wrong, too large, or after what must not be seen.

use axum::http::{Method, StatusCode};
use gantry_api::model::Role;
use serde_json::json;

use crate::rig::{Rig, request, vcenter};

#[tokio::test]
async fn records_are_made_shown_changed_and_deleted_and_secrets_stay_inside() {
    let rig = Rig::new();
    let id = rig.made("/api/v1/vcenters", vcenter("one")).await;
    assert_eq!(rig.memory.secret(id).expect("kept").reveal(), "vcenter-hush");
    let path = format!("/api/v1/vcenters/{id}");
    let (_, shown) = rig.ask(Method::GET, &path, json!(null)).await;
    assert!(!shown.to_string().contains("hush"), "{shown}");
    // What was shown may be sent back; the secret stays.
    let mut changed = shown.clone();
    changed["user"] = json!("other");
    let (status, shown) = rig.ask(Method::PUT, &path, changed).await;
    assert_eq!((status, &shown["user"]), (StatusCode::OK, &json!("other")));
    assert_eq!(rig.memory.secret(id).expect("kept").reveal(), "vcenter-hush");
    let (status, _) = rig.ask(Method::POST, "/api/v1/vcenters", vcenter("one")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (_, all) = rig.ask(Method::GET, "/api/v1/vcenters", json!(null)).await;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(1));
    assert!(!all.to_string().contains("hush"));
    let (status, _) = rig.ask(Method::DELETE, &path, json!(null)).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, problem) = rig.ask(Method::GET, &path, json!(null)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(problem["next"], "list what there is: gantry vcenter list");
    assert_eq!(problem["request_id"].as_str().map(str::len), Some(16), "{problem}");
}

#[tokio::test]
async fn a_refusal_names_the_field_and_never_quotes_a_secret() {
    let rig = Rig::new();
    let mut wrong = vec![];
    let mut draft = vcenter("one");
    draft["url"] = json!("http://vcenter.example");
    wrong.push((draft, "url"));
    let mut draft = vcenter("one");
    draft["password"] = json!(["vcenter-hush"]);
    wrong.push((draft, "password"));
    let mut draft = vcenter("one");
    draft["user"] = json!({"hush": "vcenter-hush"});
    wrong.push((draft, "string"));
    let mut draft = vcenter("one");
    draft.as_object_mut().expect("fields").remove("password");
    wrong.push((draft, "password"));
    let mut draft = vcenter("one");
    draft["surprise"] = json!(1);
    wrong.push((draft, "surprise"));
    for (draft, named) in wrong {
        let (status, problem) = rig.ask(Method::POST, "/api/v1/vcenters", draft).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains(named) && !detail.contains("vcenter-hush"), "{detail}");
    }
    let text = "{\"name\": \"vcenter-hush";
    let sent = request(Method::POST, "/api/v1/vcenters", Some(Role::Admin), text);
    let (status, problem) = rig.send(sent).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(!problem.to_string().contains("hush"), "{problem}");
}

#[tokio::test]
async fn hostile_requests_get_an_answer_below_500() {
    let rig = Rig::new();
    let admin = Some(Role::Admin);
    let deep = format!("{{\"name\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let large = " ".repeat(gantry_api::limits::BODY_BYTES_MAX + 1);
    let long = format!("/api/v1/settings/{}", "x".repeat(5000));
    let cases = [
        (Method::POST, "/api/v1/jobs", deep, 400),
        (Method::POST, "/api/v1/jobs", large.clone(), 413),
        (Method::POST, "/api/v1/enroll", large, 413),
        (Method::POST, "/api/v1/jobs", "{}".into(), 422),
        (Method::POST, "/api/v1/jobs", "[[1]]".into(), 422),
        (Method::GET, "/api/v1/jobs/..%2f..", String::new(), 400),
        (Method::GET, "/api/v1/jobs/%ff%fe", String::new(), 400),
        (Method::GET, "/api/v1/sessions?limit=0", String::new(), 400),
        (Method::GET, "/api/v1/sessions?limit=99999999999999", String::new(), 400),
        (Method::GET, "/api/v1/sessions?surprise=1", String::new(), 400),
        (Method::GET, "/api/v1/points?after=18446744073709551615", String::new(), 200),
        (Method::PUT, &long, "{\"value\": 1}".into(), 400),
        (Method::PATCH, "/api/v1/jobs", String::new(), 405),
        (Method::GET, "/api/v2", String::new(), 404),
    ];
    for (method, path, body, expected) in cases {
        let shown = format!("{method} {}", &path[..path.len().min(80)]);
        let (status, problem) = rig.send(request(method, path, admin, body)).await;
        assert_eq!(status.as_u16(), expected, "{shown}: {problem}");
        if expected >= 400 {
            assert!(problem["detail"].is_string() && problem["next"].is_string(), "{shown}");
        }
    }
    let mut sent = request(Method::POST, "/api/v1/jobs", admin, "{}");
    sent.headers_mut().remove("content-type");
    assert_eq!(rig.send(sent).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_token_is_shown_once_and_lets_in_until_it_is_deleted() {
    let rig = Rig::new();
    let wanted = json!({"name": "robot", "role": "operator"});
    let (status, made) = rig.ask(Method::POST, "/api/v1/tokens", wanted).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let text = made["text"].as_str().expect("its text");
    let (_, all) = rig.ask(Method::GET, "/api/v1/tokens", json!(null)).await;
    assert!(all.to_string().contains("robot") && !all.to_string().contains(text));
    let about = async || {
        let mut sent = request(Method::GET, "/api/v1/about", None, "");
        let bearer = format!("Bearer {text}").parse().expect("a value");
        sent.headers_mut().insert("authorization", bearer);
        rig.send(sent).await
    };
    let (status, answer) = about().await;
    assert_eq!((status, &answer["role"]), (StatusCode::OK, &json!("operator")));
    let path = format!("/api/v1/tokens/{}", made["token"]["id"].as_str().expect("an id"));
    assert_eq!(rig.ask(Method::DELETE, &path, json!(null)).await.0, StatusCode::NO_CONTENT);
    assert_eq!(about().await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn guesses_at_enrolment_are_slowed_down() {
    let rig = Rig::new();
    let guess = json!({"mover": "proxy-1", "secret": "wrong", "csr": "PEM"}).to_string();
    let send = async || {
        let sent = request(Method::POST, "/api/v1/enroll", None, guess.clone());
        rig.send(sent).await.0
    };
    for _ in 0..gantry_api::limits::LOGIN_FAILURES_BURST {
        assert_eq!(send().await, StatusCode::NOT_FOUND);
    }
    assert_eq!(send().await, StatusCode::TOO_MANY_REQUESTS);
}
