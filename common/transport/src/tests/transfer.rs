//! Blocks and messages get across whole, in order within a stream, and their buffers come back.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_common::wire::ToTarget;

use super::{KINDS, block, ends};
use crate::payload::PayloadPool;
use crate::{Channel, Connection, FrameSender, Options, OutFrame, Pacer, TransportKind, pair};

const BLOCK_BYTES: usize = 1 << 20;

fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    bytes
}

async fn send_blocks(sender: &FrameSender, lanes: usize, blocks: u64) {
    sender.open_lanes(lanes).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..lanes {
        let sender = sender.clone();
        tasks.spawn(async move {
            for number in (lane as u64..blocks).step_by(lanes) {
                let payload = Bytes::from_owner(content(number));
                sender.send_lane(lane, block(number, payload), &Pacer::unlimited()).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Receives everything until the good end; gives the number of blocks.
async fn receive_blocks(connection: &mut Connection, pool: PayloadPool) -> u64 {
    connection.receiver.accept_lanes(pool);
    let (mut blocks, mut byes) = (0, 0);
    let mut last = [None; 4];
    while let Some(frame) = connection.receiver.recv().await.unwrap() {
        match (frame.channel, frame.decode().unwrap()) {
            (Channel::Lane(lane), ToTarget::Block { block, .. }) => {
                let came = blake3::hash(frame.payload.as_ref().unwrap().stored());
                assert_eq!(came, blake3::hash(&content(block)), "block {block}");
                assert!(last[usize::from(lane)].replace(block) < Some(block), "order in a lane");
                blocks += 1;
            }
            (Channel::Control, ToTarget::Bye) => byes += 1,
            (channel, other) => panic!("{other:?} on {channel:?}"),
        }
    }
    assert_eq!(byes, 1);
    blocks
}

#[tokio::test]
async fn two_hundred_megabytes_arrive_whole_over_every_transport() {
    for kind in KINDS {
        let (client, mut server, _peers) = ends(kind, Options::default()).await;
        let pool = PayloadPool::new(16, BLOCK_BYTES).unwrap();
        let send = async {
            send_blocks(&client.sender, 4, 200).await;
            client.sender.send_control(OutFrame::message(&ToTarget::Bye)).await.unwrap();
            client.sender.finish().await.unwrap();
        };
        let ((), blocks) = tokio::join!(send, receive_blocks(&mut server, pool.clone()));
        assert_eq!(blocks, 200);
        assert_eq!(pool.free(), 16, "every payload is back");
        let stats = client.sender.stats();
        if kind == TransportKind::Quic {
            assert!(stats.mtu_bytes > 6000, "{stats:?}");
        }
    }
}

#[test]
fn memory_joins_two_threads_with_a_runtime_each() {
    let (client, mut server) = pair();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sending = std::thread::spawn(move || {
        runtime().block_on(async {
            send_blocks(&client.sender, 2, 50).await;
            client.sender.send_control(OutFrame::message(&ToTarget::Bye)).await.unwrap();
            client.sender.finish().await.unwrap();
        });
    });
    let pool = PayloadPool::new(2, BLOCK_BYTES).unwrap();
    assert_eq!(runtime().block_on(receive_blocks(&mut server, pool)), 50);
    sending.join().unwrap();
}

#[tokio::test]
async fn a_payload_comes_back_once_the_peer_has_it_and_not_before() {
    let small = Options { lane_window_bytes: 64 << 10, ..Options::default() };
    let (client, mut server, _peers) = ends(TransportKind::Quic, small).await;
    let outgoing = PayloadPool::new(1, BLOCK_BYTES).unwrap();
    let payload = outgoing.take(BLOCK_BYTES).unwrap();
    client.sender.open_lanes(1).await.unwrap();
    let frame = block(7, Bytes::from_owner(payload));
    let sender = client.sender.clone();
    let sending =
        tokio::spawn(async move { sender.send_lane(0, frame, &Pacer::unlimited()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(outgoing.free(), 0, "the peer has not admitted lanes, so it took little");
    server.receiver.accept_lanes(PayloadPool::new(1, BLOCK_BYTES).unwrap());
    let frame = server.receiver.recv().await.unwrap().unwrap();
    assert_eq!(frame.payload_len() as usize, BLOCK_BYTES);
    sending.await.unwrap().unwrap();
    let start = Instant::now();
    while outgoing.free() == 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "never acknowledged");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn control_is_not_held_up_by_blocks_and_goes_both_ways() {
    for kind in [TransportKind::Quic, TransportKind::Tcp] {
        let (client, mut server, _peers) = ends(kind, Options::default()).await;
        let mut client_in = client.receiver;
        server.receiver.accept_lanes(PayloadPool::new(4, BLOCK_BYTES).unwrap());
        client.sender.open_lanes(1).await.unwrap();
        let sender = client.sender.clone();
        let slow = Pacer::of_rate(NonZeroU64::new(2_000_000).unwrap());
        let sending = tokio::spawn(async move {
            sender.send_lane(0, block(1, content(1).into()), &slow).await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let bye = || OutFrame::message(&ToTarget::Bye);
        client.sender.send_control(bye()).await.unwrap();
        let first = server.receiver.recv().await.unwrap().unwrap();
        assert_eq!(first.channel, Channel::Control, "{kind:?}: within a block of half a second");
        server.sender.send_control(bye()).await.unwrap();
        assert_eq!(client_in.recv().await.unwrap().unwrap().channel, Channel::Control);
        let second = server.receiver.recv().await.unwrap().unwrap();
        assert_eq!(second.payload_len() as usize, BLOCK_BYTES);
        sending.await.unwrap();
    }
}
