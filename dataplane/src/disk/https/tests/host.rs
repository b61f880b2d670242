//! A host's datastore access over TLS, with faults.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What the host does wrong. Passing faults hit every third request or so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Ends the connection within a body.
    Cut,
    Status(u16),
    Always(u16),
    WrongRange,
    AlwaysWrongRange,
    /// Knows no ranges.
    Whole,
    /// A body without an end.
    Endless,
    /// Another size, from the fourth request on.
    Grown,
    OtherTag,
    /// The cookie `one` is good for four requests.
    SessionEnds,
    Delay(Duration),
}

/// A running host.
pub(super) struct Host {
    pub port: u16,
    pub thumbprint: String,
    pub bytes: Arc<Vec<u8>>,
    pub sent_bytes: Arc<AtomicU64>,
}

struct Server {
    bytes: Arc<Vec<u8>>,
    sent_bytes: Arc<AtomicU64>,
    requests: AtomicU64,
    seed: u64,
    fault: Fault,
    tls: Arc<ServerConfig>,
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

impl Host {
    pub(super) fn start(bytes: Vec<u8>, seed: u64, fault: Fault) -> Host {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["host".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        let digest = suite.common.hash_provider.hash(certificate.der());
        let thumbprint = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (bytes, sent_bytes) = (Arc::new(bytes), Arc::new(AtomicU64::new(0)));
        let server = Arc::new(Server {
            bytes: Arc::clone(&bytes),
            sent_bytes: Arc::clone(&sent_bytes),
            requests: AtomicU64::new(0),
            seed,
            fault,
            tls: Arc::new(tls),
        });
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                // An error is the client's hanging up.
                std::thread::spawn(move || drop(server.serve(stream)));
            }
        });
        Host { port, thumbprint, bytes, sent_bytes }
    }
}

impl Server {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let connection = ServerConnection::new(Arc::clone(&self.tls)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while self.answer(&mut stream)? {}
        Ok(())
    }

    /// Answers one request; false ends the connection.
    fn answer(&self, stream: &mut Tls) -> io::Result<bool> {
        let head = head(stream)?;
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut random = fastrand::Rng::with_seed(self.seed.wrapping_add(number));
        let now = number > 0 && random.u8(..3) == 0;
        assert!(head.starts_with("GET /folder/vm/vm-flat.vmdk?dsName=ds HTTP/1.1\r\n"), "{head}");
        let good = match self.fault {
            Fault::SessionEnds => number < 4 && head.contains("=one") || head.contains("=two"),
            _ => head.contains("vmware_soap_session=one"),
        };
        if !good {
            return self.plain(stream, 401);
        }
        match self.fault {
            Fault::Status(status) if now => return self.plain(stream, status),
            Fault::Always(status) => return self.plain(stream, status),
            Fault::Delay(delay) => std::thread::sleep(delay),
            _ => {}
        }
        let (first, last) = range(&head);
        let total = self.bytes.len() as u64;
        let last = last.min(total - 1);
        let body = &self.bytes[first as usize..=last as usize];
        let grown = if self.fault == Fault::Grown && number > 2 { 512 } else { 0 };
        let tag = if self.fault == Fault::OtherTag && number > 2 { "b" } else { "a" };
        let wrong = (self.fault == Fault::WrongRange && now)
            || (self.fault == Fault::AlwaysWrongRange && number > 0);
        let shift = u64::from(wrong);
        let mut head = format!("HTTP/1.1 206 Partial Content\r\nETag: \"{tag}\"\r\n");
        head += &format!("Content-Range: bytes {}-{last}/{}\r\n", first + shift, total + grown);
        match self.fault {
            Fault::Whole => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n");
                stream.write_all(head.as_bytes())?;
                self.send(stream, &self.bytes)?;
            }
            Fault::Endless => {
                stream.write_all((head + "Connection: close\r\n\r\n").as_bytes())?;
                loop {
                    self.send(stream, &self.bytes)?;
                }
            }
            _ => {
                head += &format!("Content-Length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes())?;
                if self.fault == Fault::Cut && now {
                    self.send(stream, &body[..random.usize(..body.len())])?;
                    stream.flush()?;
                    return Ok(false);
                }
                self.send(stream, body)?;
            }
        }
        stream.flush()?;
        Ok(true)
    }

    fn send(&self, stream: &mut Tls, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(64 << 10) {
            stream.write_all(piece)?;
            self.sent_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn plain(&self, stream: &mut Tls, status: u16) -> io::Result<bool> {
        let body = "<html><body>Out of HTTP sessions</body></html>";
        let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes())?;
        stream.flush()?;
        Ok(true)
    }
}

fn head(stream: &mut Tls) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn range(head: &str) -> (u64, u64) {
    let lower = head.to_ascii_lowercase();
    let text = lower.split("range: bytes=").nth(1).expect("a range is asked for");
    let (first, last) = text.lines().next().unwrap().split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}
