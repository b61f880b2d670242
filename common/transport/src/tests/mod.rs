//! Scenarios of two movers that talk, over every transport; on 127.0.0.1 only.
//!
//! Here: what the scenarios share.

mod admission;
mod control;
mod flow;
mod transfer;

use std::time::Duration;

use bytes::Bytes;
use gantry_common::ids::{BlockId, StoredChecksum};
use gantry_common::wire::{BlockHead, Codec, ToTarget};

use super::{
    Connection, Identity, Listener, Options, OutFrame, TransportKind, Trust, connect, pair,
};

/// Two movers that know each other, and the one that listens.
struct Peers {
    client: Identity,
    server: Identity,
    listener: Listener,
}

impl Peers {
    async fn new(options: &Options) -> Peers {
        let client = Identity::generate("client").unwrap();
        let server = Identity::generate("server").unwrap();
        let trust = Trust::of_pins([client.pin()]);
        let listener = listen(&server, &trust, options).await;
        Peers { client, server, listener }
    }
}

async fn listen(identity: &Identity, trust: &Trust, options: &Options) -> Listener {
    Listener::bind(([127, 0, 0, 1], 0).into(), identity, trust, options).await.unwrap()
}

/// A connection's two ends; the listener lives as long.
async fn ends(kind: TransportKind, options: Options) -> (Connection, Connection, Option<Peers>) {
    if kind == TransportKind::Memory {
        let (client, server) = pair();
        return (client, server, None);
    }
    let options = Options { kind, ..options };
    let mut peers = Peers::new(&options).await;
    let address = peers.listener.address().to_string();
    let trust = Trust::of_pins([peers.server.pin()]);
    let connecting = connect(&address, &peers.client, &trust, &options);
    let (client, server) = tokio::join!(connecting, peers.listener.accept());
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!((client.peer.pin, server.peer.pin), (peers.server.pin(), peers.client.pin()));
    assert_eq!((client.kind, server.kind), (kind, kind));
    (client, server, Some(peers))
}

const KINDS: [TransportKind; 3] = [TransportKind::Quic, TransportKind::Tcp, TransportKind::Memory];

/// Options with a short idle time.
fn impatient() -> Options {
    Options {
        idle: Duration::from_millis(600),
        keep_alive: Duration::from_millis(150),
        ..Options::default()
    }
}

fn block(number: u64, payload: Bytes) -> OutFrame {
    let head = BlockHead {
        id: BlockId([3; 32]),
        codec: Codec::Raw,
        raw_len: payload.len() as u32,
        checksum: StoredChecksum([4; 16]),
    };
    OutFrame::block(&ToTarget::Block { task: 0, block: number, head }, payload)
}
