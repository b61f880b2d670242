//! Who gets in, and what the one who does not is told.

use std::time::Duration;

use gantry_common::failure::FailureKind;

use super::{Peers, impatient, listen};
use crate::connect::connect_as;
use crate::{
    CertificateAuthority, Identity, Options, TransportError, TransportKind, Trust, connect,
};

const NETWORKED: [TransportKind; 2] = [TransportKind::Quic, TransportKind::Tcp];

fn refused(result: Result<impl Sized, TransportError>, words: &str) {
    let error = result.err().expect("refused");
    assert_eq!(error.failure_kind(), FailureKind::Refused, "{error}");
    assert!(error.to_string().contains(words), "'{error}' does not say '{words}'");
}

async fn nobody_comes(peers: &mut Peers) {
    let accepted = tokio::time::timeout(Duration::from_millis(100), peers.listener.accept()).await;
    assert!(accepted.is_err(), "{accepted:?}");
}

#[tokio::test]
async fn a_wrong_pin_is_refused_by_either_side_with_the_remedy() {
    for kind in NETWORKED {
        let options = Options { kind, ..Options::default() };
        let mut peers = Peers::new(&options).await;
        let address = peers.listener.address().to_string();
        let stranger = Identity::generate("stranger").unwrap();

        let wrong = Trust::of_pins([stranger.pin()]);
        let result = connect(&address, &peers.client, &wrong, &options).await;
        let words = format!("(pin {}) is not among those allowed in", peers.server.pin());
        refused(result, &words);
        nobody_comes(&mut peers).await;

        let trust = Trust::of_pins([peers.server.pin()]);
        let result = connect(&address, &stranger, &trust, &options).await;
        refused(result, &format!("add our pin {} to its --peer file", stranger.pin()));
        nobody_comes(&mut peers).await;
    }
}

#[tokio::test]
async fn an_authority_lets_in_whom_it_signed_and_no_other() {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let [ca, other] = [(); 2].map(|()| CertificateAuthority::generate().unwrap());
    let trust = Trust::parse("peers".as_ref(), ca.certificate_pem().as_bytes()).unwrap();
    for kind in NETWORKED {
        let options = Options { kind, ..Options::default() };
        let server = ca.issue("server.example", YEAR).unwrap();
        let mut listener = listen(&server, &trust, &options).await;
        let address = listener.address().to_string();
        let client = ca.issue("client.example", YEAR).unwrap();

        let named = trust.clone().expect_name("server.example").unwrap();
        let connecting = connect(&address, &client, &named, &options);
        let (connected, accepted) = tokio::join!(connecting, listener.accept());
        assert_eq!(connected.unwrap().peer.pin, server.pin());
        assert_eq!(accepted.unwrap().peer.pin, client.pin());

        let misnamed = trust.clone().expect_name("other.example").unwrap();
        refused(connect(&address, &client, &misnamed, &options).await, "other.example");
        let foreign = other.issue("client.example", YEAR).unwrap();
        refused(connect(&address, &foreign, &trust, &options).await, "add our pin");
        let expired = ca.issue_between("client.example", YEAR, YEAR * 2).unwrap();
        refused(connect(&address, &expired, &trust, &options).await, "has expired, renew it");
    }
}

#[tokio::test]
async fn another_protocol_version_is_named() {
    for kind in NETWORKED {
        let options = Options { kind, ..Options::default() };
        let peers = Peers::new(&options).await;
        let address = peers.listener.address().to_string();
        let trust = Trust::of_pins([peers.server.pin()]);
        let result = connect_as(&address, &peers.client, &trust, b"gantry/0", &options).await;
        refused(result, "another protocol version (we speak gantry/1)");
    }
}

#[tokio::test]
async fn auto_turns_to_tcp_when_udp_is_silent_and_says_so() {
    let options = Options { quic_attempt_max: Duration::from_millis(200), ..impatient() };
    // A listener's TCP port with another socket on its UDP port: as behind a firewall.
    let quic_only = Options { kind: TransportKind::Tcp, ..options.clone() };
    let server = Identity::generate("server").unwrap();
    let client = Identity::generate("client").unwrap();
    let acceptor = crate::tcp::acceptor(&server, &Trust::of_pins([client.pin()])).unwrap();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let _silent = std::net::UdpSocket::bind(address).unwrap();
    let accepting = async {
        let (stream, from) = tcp.accept().await.unwrap();
        crate::tcp::accept(stream, from, &acceptor, &server, &quic_only).await
    };
    let trust = Trust::of_pins([server.pin()]);
    let address = address.to_string();
    let (connected, accepted) =
        tokio::join!(connect(&address, &client, &trust, &options), accepting);
    let (connected, _accepted) = (connected.unwrap(), accepted.unwrap());
    assert_eq!(connected.kind, TransportKind::Tcp);
    let note = connected.note.unwrap();
    assert!(note.contains("UDP") && note.contains("200 ms"), "{note}");
}

#[tokio::test]
async fn auto_prefers_quic_and_does_not_turn_to_tcp_when_refused() {
    let options = Options::default();
    let mut peers = Peers::new(&options).await;
    let address = peers.listener.address().to_string();
    let trust = Trust::of_pins([peers.server.pin()]);
    let connecting = connect(&address, &peers.client, &trust, &options);
    let (connected, _accepted) = tokio::join!(connecting, peers.listener.accept());
    assert_eq!(connected.unwrap().kind, TransportKind::Quic);
    let stranger = Identity::generate("stranger").unwrap();
    refused(connect(&address, &stranger, &trust, &options).await, "add our pin");
}

#[tokio::test]
async fn nobody_there_is_a_matter_of_the_network() {
    let identity = Identity::generate("client").unwrap();
    let trust = Trust::of_pins([identity.pin()]);
    for kind in NETWORKED {
        let limit = Duration::from_millis(200);
        let options = Options { kind, handshake_max: limit, ..Options::default() };
        let result = connect("127.0.0.1:1", &identity, &trust, &options).await;
        let error = result.unwrap_err();
        assert_eq!(error.failure_kind(), FailureKind::Network, "{error}");
    }
}
