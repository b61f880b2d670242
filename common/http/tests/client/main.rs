//! The client against a server that is right, wrong, slow, rude or hostile.

mod server;

use std::time::{Duration, Instant};

use gantry_http::{Endpoint, HttpClient, HttpError, Limits, Request, Thumbprint, TimedOut, Trust};
use server::Server;
use tokio::net::TcpListener;

fn short() -> Limits {
    Limits {
        connections_max: 2,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(2),
        chunk_timeout: Duration::from_millis(300),
        ..Limits::default()
    }
}

fn client(server: &Server) -> HttpClient {
    let trust = Trust::Sha256Thumbprint(server.thumbprint);
    HttpClient::new(server.endpoint.clone(), &trust, short()).expect("a client")
}

async fn text(client: &HttpClient, request: &Request) -> Result<String, HttpError> {
    let body = client.send(request).await?.body_bounded(64 << 10).await?;
    Ok(String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn a_pinned_certificate_is_accepted_whatever_its_name() {
    let server = Server::start().await;
    assert_eq!(text(&client(&server), &Request::get("/echo")).await.expect("an answer"), "/echo");
}

#[tokio::test]
async fn another_certificate_is_refused_with_the_thumbprint_to_pin() {
    let server = Server::start().await;
    let trust = Trust::Sha256Thumbprint(Thumbprint([1; 32]));
    let client = HttpClient::new(server.endpoint.clone(), &trust, short()).expect("a client");
    let error = client.send(&Request::get("/echo")).await.expect_err("a wrong pin");
    assert!(error.to_string().contains(&server.thumbprint.to_string()), "{error}");
    assert!(!error.may_have_been_sent() && !error.is_transient());
    let HttpError::UntrustedCertificate { presented, .. } = error else { panic!("{error}") };
    assert_eq!(presented, server.thumbprint);
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn an_authority_is_accepted_only_for_its_own_names() {
    let server = Server::start().await;
    let other = Server::start().await;
    let trust = Trust::CaPem(server.certificate_pem.clone().into_bytes());
    let client = HttpClient::new(server.endpoint.clone(), &trust, short()).expect("a client");
    assert_eq!(text(&client, &Request::get("/echo")).await.expect("an answer"), "/echo");
    let client = HttpClient::new(other.endpoint.clone(), &trust, short()).expect("a client");
    let error = client.send(&Request::get("/echo")).await.expect_err("another authority");
    let HttpError::UntrustedCertificate { presented, .. } = error else { panic!("{error}") };
    assert_eq!(presented, other.thumbprint);
}

#[tokio::test]
async fn what_speaks_no_tls_is_told_apart_from_what_does_not_listen() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let trust = Trust::Sha256Thumbprint(Thumbprint([0; 32]));
    let endpoint = Endpoint::new("127.0.0.1", port).expect("an endpoint");
    let limits = Limits { connect_timeout: Duration::from_millis(300), ..short() };
    let client = HttpClient::new(endpoint, &trust, limits).expect("a client");
    let error = client.send(&Request::get("/")).await.expect_err("nobody answers");
    assert!(
        matches!(error, HttpError::Timeout { stage: TimedOut::Connect, .. }),
        "a silent port: {error}"
    );
    drop(listener);
    let error = client.send(&Request::get("/")).await.expect_err("nobody listens");
    assert!(matches!(error, HttpError::Connect { .. }), "a closed port: {error}");
    assert!(error.is_transient() && !error.may_have_been_sent());
}

#[tokio::test]
async fn headers_body_and_range_arrive() {
    let server = Server::start().await;
    let request = Request::post("/head?a=b%20c", "body")
        .header(gantry_http::header::COOKIE, "secret=1")
        .range(512, 1024);
    assert!(!format!("{request:?}").contains("secret=1"), "cookies are not printed");
    assert!(!format!("{:?}", Request::post("/", "hush")).contains("hush"), "nor are bodies");
    let head = text(&client(&server), &request).await.expect("an answer");
    // The path with a query is not one of the server's special ones: it echoes it.
    assert_eq!(head, "/head?a=b%20c");
    let head = text(&client(&server), &Request::get("/head").range(512, 1024)).await;
    let head = head.expect("an answer");
    assert!(head.contains("range: bytes=512-1535"), "{head}");
    assert!(head.contains(&format!("host: {}", server.endpoint)), "{head}");
    let injected = Request::get("/echo").header(gantry_http::header::COOKIE, "a\r\nX: y");
    let error = client(&server).send(&injected).await.expect_err("a line break in a header");
    assert!(matches!(error, HttpError::Configuration { .. }), "{error}");
    let error = client(&server).send(&Request::get("echo")).await.expect_err("no slash");
    assert!(matches!(error, HttpError::Configuration { .. }), "{error}");
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let server = Server::start().await;
    let client = client(&server);
    for _ in 0..5 {
        text(&client, &Request::get("/echo")).await.expect("an answer");
    }
    assert_eq!(client.connections_opened(), 1);
    client.close_idle();
    text(&client, &Request::get("/echo")).await.expect("an answer");
    assert_eq!(client.connections_opened(), 2);
}

#[tokio::test]
async fn no_more_connections_than_allowed() {
    let server = Server::start().await;
    let client = client(&server);
    let _first = client.send(&Request::get("/stops")).await.expect("a head");
    let second = client.send(&Request::get("/stops")).await.expect("a head");
    let request = Request::get("/echo").timeout(Duration::from_millis(200));
    let error = client.send(&request).await.expect_err("both connections are in use");
    assert!(matches!(error, HttpError::Timeout { stage: TimedOut::Connection, .. }), "{error}");
    assert!(!error.may_have_been_sent());
    drop(second);
    text(&client, &Request::get("/echo")).await.expect("one is free again");
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced_unseen() {
    let server = Server::start().await;
    let client = client(&server);
    assert_eq!(text(&client, &Request::get("/last")).await.expect("an answer"), "last");
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Not idempotent: it may be repeated only because nothing of it was sent.
    assert_eq!(text(&client, &Request::post("/echo", "x")).await.expect("an answer"), "/echo");
    assert_eq!((client.connections_opened(), server.requests()), (2, 2));
}

#[tokio::test]
async fn only_an_idempotent_request_is_sent_again_after_a_loss() {
    let server = Server::start().await;
    let client = client(&server);
    text(&client, &Request::get("/echo")).await.expect("an answer");
    // The second request: taken, not answered. The third, on a fresh connection, is.
    let answer = text(&client, &Request::get("/vanish-once")).await.expect("an answer");
    assert_eq!((answer.as_str(), server.requests()), ("/vanish-once", 3));
    // The fourth.
    let error = client.send(&Request::post("/vanish-once", "x")).await.expect_err("not repeated");
    assert!(matches!(error, HttpError::Lost { sent: true, .. }), "{error}");
    assert_eq!(server.requests(), 4);
    // On a fresh connection nothing is repeated: the server is at fault, not the keeping.
    let error = client.send(&Request::get("/vanish")).await.expect_err("not repeated");
    assert!(error.may_have_been_sent() && error.is_transient(), "{error}");
    assert_eq!(server.requests(), 5);
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let server = Server::start().await;
    let client = client(&server);
    for (path, what) in [
        ("/large", "body"),
        ("/chunked", "body"),
        ("/long-head", "head"),
        ("/many-headers", "head"),
    ] {
        let result = match client.send(&Request::get(path)).await {
            Ok(response) => response.body_bounded(10_000).await.map(drop),
            Err(error) => Err(error),
        };
        let error = result.expect_err(path);
        assert!(
            matches!(&error, HttpError::TooLarge { what: found, .. } if *found == what),
            "{path}: {error}"
        );
    }
    text(&client, &Request::get("/echo")).await.expect("the client is as good as new");
}

#[tokio::test]
async fn a_slow_or_broken_body_is_an_error_in_time() {
    let server = Server::start().await;
    let client = client(&server);
    let began = Instant::now();
    let error = text(&client, &Request::get("/stops")).await.expect_err("it stops");
    assert!(matches!(error, HttpError::Timeout { stage: TimedOut::Body, .. }), "{error}");
    let error = text(&client, &Request::get("/breaks")).await.expect_err("it breaks");
    assert!(matches!(error, HttpError::Lost { .. }), "{error}");
    let silent = Request::get("/silent").timeout(Duration::from_millis(200));
    let error = client.send(&silent).await.expect_err("no answer");
    assert!(matches!(error, HttpError::Timeout { stage: TimedOut::Response, .. }), "{error}");
    assert!(error.may_have_been_sent());
    let error = client.send(&Request::get("/rubbish")).await.expect_err("not HTTP");
    assert!(matches!(error, HttpError::Protocol { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn exact_reads_cross_pieces_and_give_the_connection_back() {
    let server = Server::start().await;
    let client = client(&server);
    let mut response = client.send(&Request::get("/large")).await.expect("a head");
    assert_eq!(response.content_length(), Some(1 << 20));
    let mut first = vec![0; 300_001];
    let mut rest = vec![0; (1 << 20) - first.len()];
    response.read_exact_into(&mut first).await.expect("the first part");
    response.read_exact_into(&mut rest).await.expect("the rest");
    assert!(first.iter().chain(&rest).all(|byte| *byte == 7));
    // The end was seen with the last byte: the connection is free although `response` lives.
    text(&client, &Request::get("/echo")).await.expect("an answer");
    assert_eq!(client.connections_opened(), 1);
    let error = response.read_exact_into(&mut [0]).await.expect_err("nothing is left");
    assert!(matches!(error, HttpError::Short { missing: 1, .. }), "{error}");
}

#[tokio::test]
async fn redirects_are_answers() {
    let server = Server::start().await;
    let response = client(&server).send(&Request::get("/redirect")).await.expect("an answer");
    assert_eq!(response.status(), 302);
    response.discard(1024).await;
    assert_eq!(server.requests(), 1);
}
