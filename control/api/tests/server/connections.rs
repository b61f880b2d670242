//! Connections: TLS, their number, slow and silent clients, the stop.

use std::time::Duration;

use gantry_api::model::Role;
use gantry_api::server::Bounds;
use gantry_http::{Request, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{Served, token};

fn about() -> Request {
    let bearer = format!("Bearer {}", token(Role::Viewer).reveal());
    Request::get("/api/v1/about").header(header::AUTHORIZATION, bearer)
}

#[tokio::test]
async fn requests_over_tls_are_answered_until_the_stop() {
    let served = Served::new(Bounds::default()).await;
    let client = served.client();
    for _ in 0..3 {
        let answer = client.send(&about()).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        assert!(answer.header("x-request-id").is_some());
        answer.body_bounded(10_000).await.expect("a body");
    }
    assert_eq!(client.connections_opened(), 1);
    served.rig.stop.send(true).expect("it runs");
    let ended = tokio::time::timeout(Duration::from_secs(5), served.running).await;
    ended.expect("idle connections do not hold it up").expect("no panic");
    client.send(&about()).await.expect_err("nobody listens");
}

#[tokio::test]
async fn silent_clients_are_cut_and_one_address_has_a_share() {
    let short = Duration::from_millis(300);
    let bounds = Bounds { peer_connections: 3, handshake: short, head: short, ..Bounds::default() };
    let served = Served::new(bounds).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(served.address).await.expect("connects"));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut fourth = TcpStream::connect(served.address).await.expect("connects");
    let cut = tokio::time::timeout(Duration::from_secs(5), fourth.read(&mut [0; 8])).await;
    assert!(matches!(cut, Ok(Ok(0) | Err(_))), "one too many is closed at once");
    for stream in &mut silent {
        let cut = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 8])).await;
        assert!(matches!(cut, Ok(Ok(0) | Err(_))), "no handshake: closed");
    }
    let answer = served.client().send(&about()).await.expect("there is room again");
    assert_eq!(answer.status().as_u16(), 200);
}

#[tokio::test]
async fn plain_text_is_no_tls() {
    let served = Served::new(Bounds::default()).await;
    let mut stream = TcpStream::connect(served.address).await.expect("connects");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
}
