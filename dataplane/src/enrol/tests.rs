//! An enrolment and a renewal against a server that shows the authority's certificate behind its own.

use std::sync::Arc;

use gantry_common::enrolment::MoverRole;
use gantry_common::secret::Secret;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::transport::{CertificateAuthority, CertificateRequest};

/// The name in the server's certificate; it is reached by its address.
pub(crate) const NAME: &str = "gantryd.example";
const DAY: Duration = Duration::from_secs(86_400);

/// Signs whatever it is asked to for a day; requests with the secret `wrong` are refused. Its address.
pub(crate) async fn serve(authority: Arc<CertificateAuthority>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let identity = authority.issue_server(&[NAME], DAY).unwrap();
    let pem = identity.to_pem();
    let chain = CertificateDer::pem_slice_iter(pem.reveal().as_bytes()).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(pem.reveal().as_bytes()).unwrap();
    let config =
        ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.unwrap(), key)
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut read = Vec::new();
            // A request's JSON is its only closing brace at the end.
            while !read.ends_with(b"}") {
                if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&read);
            let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            let asked: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
            let request = CertificateRequest::parse(asked["csr"].as_str().unwrap_or_default());
            let (status, answer) = match request {
                Ok(request) if asked["secret"] != "wrong" => {
                    let reply = EnrolReply {
                        certificate: authority.sign(&request, "proxy-1", DAY).unwrap(),
                        authority: authority.certificate_pem().to_owned(),
                    };
                    ("200 OK", serde_json::to_string(&reply).unwrap())
                }
                _ => ("403 Forbidden", r#"{"detail":"not invited","next":"ask again"}"#.into()),
            };
            let length = answer.len();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{answer}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    url
}

fn token(url: &str, authority: &CertificateAuthority, secret: &str) -> EnrolmentToken {
    let sha256 = authority.certificate_sha256();
    EnrolmentToken {
        url: url.to_owned(),
        ca_sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
        control: "127.0.0.1:2".into(),
        name: NAME.into(),
        mover: "proxy-1".into(),
        role: MoverRole::Proxy,
        secret: Secret::new(secret),
    }
}

#[tokio::test]
async fn a_mover_enrols_with_the_inviting_gantryd_alone_and_renews_with_its_key() {
    let authority = Arc::new(CertificateAuthority::generate().unwrap());
    let url = serve(Arc::clone(&authority)).await;
    let enrolled = enrol(&token(&url, &authority, "right")).await.unwrap();
    assert_eq!(enrolled.authority, authority.certificate_pem());
    let api = (url.as_str(), NAME);
    let renewed = renew(&enrolled.identity, api, enrolled.authority.as_bytes()).await.unwrap();
    assert_eq!(renewed.pin(), enrolled.identity.pin());
    assert_ne!(renewed.certificates_pem(), enrolled.identity.certificates_pem());

    let refused = enrol(&token(&url, &authority, "wrong")).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Refused);
    assert!(refused.message.contains("not invited; ask again"), "{refused}");
    let other = CertificateAuthority::generate().unwrap();
    let wrong = enrol(&token(&url, &other, "right")).await.unwrap_err();
    assert_eq!(wrong.kind, FailureKind::Refused, "{wrong}");
    let elsewhere = EnrolmentToken { name: "x.example".into(), ..token(&url, &authority, "right") };
    assert!(enrol(&elsewhere).await.is_err());
    let wrong = renew(&renewed, api, other.certificate_pem().as_bytes()).await.unwrap_err();
    assert_eq!(wrong.kind, FailureKind::Refused, "{wrong}");
}

#[test]
fn renewal_is_due_in_the_last_third() {
    let at = Duration::from_secs;
    let validity = (at(1000), at(1900));
    for (now, due) in [(1000, false), (1600, false), (1601, true), (1900, true), (9000, true)] {
        assert_eq!(is_due(validity, at(now)), due, "{now}");
    }
}
