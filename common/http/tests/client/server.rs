//! A small TLS server for the tests that does what well-behaved ones do not.
//!
//! In: requests whose path names the behaviour. Out: answers, written by hand so that they can be
//! wrong. Listens on 127.0.0.1 with a port of the system's choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_http::{Endpoint, Thumbprint};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A running server; ends with the test's runtime.
pub struct Server {
    pub endpoint: Endpoint,
    pub certificate_pem: String,
    /// Of the certificate, by this module's own count.
    pub thumbprint: Thumbprint,
    /// Requests that arrived, over all connections.
    pub requests: Arc<AtomicU64>,
}

impl Server {
    pub async fn start() -> Server {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a server configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::new(AtomicU64::new(0));
        let counter = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, counter.clone()));
            }
        });
        Server {
            endpoint: Endpoint::new("127.0.0.1", port).expect("an endpoint"),
            certificate_pem: made.cert.pem(),
            thumbprint: sha256(made.cert.der()),
            requests,
        }
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

fn sha256(bytes: &[u8]) -> Thumbprint {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = suite.tls13().expect("a TLS 1.3 suite").common.hash_provider;
    Thumbprint(hash.hash(bytes).as_ref().try_into().expect("32 bytes"))
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, requests: Arc<AtomicU64>) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    while let Some((path, head)) = read_head(&mut stream).await {
        let number = requests.fetch_add(1, Ordering::SeqCst) + 1;
        if !answer(&mut stream, &path, &head, number).await {
            return;
        }
    }
}

/// Path and whole head of the next request; bodies are read and dropped.
async fn read_head(stream: &mut TlsStream<TcpStream>) -> Option<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.and_then(|text| text.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    Some((path, head))
}

async fn send(stream: &mut TlsStream<TcpStream>, bytes: impl AsRef<[u8]>) -> bool {
    stream.write_all(bytes.as_ref()).await.is_ok() && stream.flush().await.is_ok()
}

async fn send_body(stream: &mut TlsStream<TcpStream>, body: &[u8]) -> bool {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    send(stream, head).await && send(stream, body).await
}

/// Answers; says whether the connection stays open.
async fn answer(stream: &mut TlsStream<TcpStream>, path: &str, head: &str, number: u64) -> bool {
    match path {
        "/head" => send_body(stream, head.as_bytes()).await,
        "/number" => send_body(stream, number.to_string().as_bytes()).await,
        "/large" => send_body(stream, &vec![7; 1 << 20]).await,
        // More than allowed, and not announced.
        "/chunked" => {
            let mut text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
            for _ in 0..64 {
                text += &format!("400\r\n{}\r\n", "x".repeat(0x400));
            }
            send(stream, text + "0\r\n\r\n").await
        }
        "/long-head" => {
            let long = "y".repeat(300 << 10);
            send(stream, format!("HTTP/1.1 200 OK\r\nX-Long: {long}\r\n\r\n")).await
        }
        "/many-headers" => {
            let many: String = (0..300).map(|at| format!("X-{at}: 1\r\n")).collect();
            send(stream, format!("HTTP/1.1 200 OK\r\n{many}\r\n")).await
        }
        "/rubbish" => send(stream, "SSH-2.0-rubbish\r\n\r\n").await,
        "/redirect" => {
            send(stream, "HTTP/1.1 302 Found\r\nLocation: /number\r\nContent-Length: 0\r\n\r\n")
                .await
        }
        "/silent" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            false
        }
        "/stops" => {
            send(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789").await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            false
        }
        "/breaks" => {
            send(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789").await;
            false
        }
        // Answers, then leaves without a word: what a server does with idle connections.
        "/last" => {
            send_body(stream, b"last").await;
            false
        }
        // Takes the request and leaves without an answer.
        "/vanish" => false,
        "/vanish-once" if number.is_multiple_of(2) => false,
        _ => send_body(stream, path.as_bytes()).await,
    }
}
