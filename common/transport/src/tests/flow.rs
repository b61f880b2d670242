//! Slow readers, hostile and lost peers, ends good and bad, and the throttle.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_common::failure::FailureKind;
use gantry_common::wire::{FrameError, ToTarget};

use super::{KINDS, block, ends, impatient};
use crate::payload::PayloadPool;
use crate::{CloseReason, Connection, Options, OutFrame, Pacer, TransportError, TransportKind};

const BLOCK_BYTES: usize = 1 << 20;

fn bye() -> OutFrame {
    OutFrame::message(&ToTarget::Bye)
}

fn raw(head: &[u8], payload: usize) -> OutFrame {
    OutFrame { head: Bytes::copy_from_slice(head), payload: vec![0; payload].into() }
}

/// The error that ends a connection.
async fn last_error(connection: &mut Connection) -> TransportError {
    loop {
        match connection.receiver.recv().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended well"),
            Err(error) => return error,
        }
    }
}

#[tokio::test]
async fn hostile_frames_are_violations_that_end_the_connection() {
    let too_long_header = [0, 0, 0, 1, 0, 0, 0, 0];
    let too_long_payload = [1, 0, 0, 0, 0, 0, 0, 1, 0];
    let no_header = [0; 8];
    for kind in KINDS {
        for (head, payload) in [
            (&too_long_header[..], 0),
            (&too_long_payload[..], 0),
            (&no_header[..], 0),
            // Longer than the session's blocks, though within the protocol's limits.
            (&[1, 0, 0, 0, 0, 0, 32, 0, 0][..], 2 << 20),
        ] {
            let (client, mut server, _peers) = ends(kind, Options::default()).await;
            server.receiver.accept_lanes(PayloadPool::new(2, BLOCK_BYTES).unwrap());
            client.sender.open_lanes(1).await.unwrap();
            // Fails on this side too, once the peer has closed.
            let _ = client.sender.send_lane(0, raw(head, payload), &Pacer::unlimited()).await;
            let error = last_error(&mut server).await;
            assert!(matches!(error, TransportError::Violation { .. }), "{kind:?}: {error}");
            if kind != TransportKind::Memory {
                let mut client = client;
                let error = last_error(&mut client).await;
                assert!(error.to_string().contains("we break the protocol"), "{error}");
                assert_eq!(error.failure_kind(), FailureKind::Refused);
            }
        }
    }
}

#[tokio::test]
async fn a_garbled_header_is_the_callers_to_refuse() {
    for kind in KINDS {
        let (client, mut server, _peers) = ends(kind, Options::default()).await;
        client.sender.send_control(raw(&[1, 0, 0, 0, 0, 0, 0, 0, 200], 0)).await.unwrap();
        let frame = server.receiver.recv().await.unwrap().unwrap();
        assert_eq!(frame.decode::<ToTarget>(), Err(FrameError::Garbled { len: 1 }));
    }
}

#[tokio::test]
async fn blocks_beyond_the_credit_are_a_violation() {
    for kind in KINDS {
        let (client, mut server, _peers) = ends(kind, Options::default()).await;
        let pool = PayloadPool::new(2, BLOCK_BYTES).unwrap();
        let held = [pool.take(1).unwrap(), pool.take(1).unwrap()];
        server.receiver.accept_lanes(pool);
        client.sender.open_lanes(1).await.unwrap();
        let frame = block(1, vec![1; 1000].into());
        client.sender.send_lane(0, frame, &Pacer::unlimited()).await.unwrap();
        let error = last_error(&mut server).await;
        assert!(error.to_string().contains("block beyond its credit"), "{error}");
        drop(held);
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_back_in_bounded_memory() {
    for kind in KINDS {
        let (client, mut server, _peers) = ends(kind, Options::default()).await;
        let pool = PayloadPool::new(64, BLOCK_BYTES).unwrap();
        server.receiver.accept_lanes(pool.clone());
        client.sender.open_lanes(1).await.unwrap();
        let sender = client.sender.clone();
        let sending = tokio::spawn(async move {
            for number in 0..64 {
                let payload = vec![number as u8; BLOCK_BYTES].into();
                sender.send_lane(0, block(number, payload), &Pacer::unlimited()).await.unwrap();
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!sending.is_finished(), "{kind:?}");
        assert!(pool.slots() - pool.free() <= 8, "{kind:?}: {} free", pool.free());
        for _ in 0..64 {
            server.receiver.recv().await.unwrap().unwrap();
        }
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_lost_within_the_idle_time() {
    for kind in [TransportKind::Quic, TransportKind::Tcp] {
        // The peer lives on a runtime that stops: its sockets stay, no packet comes.
        let (address_in, address_out) = std::sync::mpsc::channel();
        let (stop_in, stop_out) = std::sync::mpsc::channel::<()>();
        let client = crate::Identity::generate("client").unwrap();
        let pin = client.pin();
        let silent = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let kept = runtime.block_on(async {
                let server = crate::Identity::generate("server").unwrap();
                let trust = crate::Trust::of_pins([pin]);
                let mut listener = super::listen(&server, &trust, &impatient()).await;
                address_in.send((listener.address(), server.pin())).unwrap();
                let connection = listener.accept().await.unwrap();
                // Alive for longer than the idle time, thanks to its signs of life.
                tokio::time::sleep(Duration::from_millis(900)).await;
                (listener, connection)
            });
            stop_out.recv().unwrap();
            drop((kept, runtime));
        });
        let (address, pin) = address_out.recv().unwrap();
        let options = Options { kind, ..impatient() };
        let trust = crate::Trust::of_pins([pin]);
        let address = address.to_string();
        let mut connection = crate::connect(&address, &client, &trust, &options).await.unwrap();
        let start = Instant::now();
        let error = last_error(&mut connection).await;
        let took = start.elapsed();
        assert_eq!(error.failure_kind(), FailureKind::Network, "{error}");
        assert!(error.to_string().contains("no sign of life"), "{error}");
        assert!((800..3000).contains(&took.as_millis()), "{kind:?}: {took:?}");
        let error = connection.sender.send_control(bye()).await.unwrap_err();
        assert_eq!(error.failure_kind(), FailureKind::Network, "{error}");
        stop_in.send(()).unwrap();
        silent.join().unwrap();
    }
}

#[tokio::test]
async fn a_killed_and_restarted_peer_is_noticed_at_once() {
    let client = crate::Identity::generate("client").unwrap();
    let server = crate::Identity::generate("server").unwrap();
    let (trust, pin) = (crate::Trust::of_pins([client.pin()]), server.pin());
    let (address_in, address_out) = std::sync::mpsc::channel();
    let (killed_in, killed_out) = std::sync::mpsc::channel::<()>();
    let (first_server, first_trust) = (server.clone(), trust.clone());
    // A runtime that is dropped says no word: as a killed process.
    let first = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let kept = runtime.block_on(async {
            let mut listener =
                super::listen(&first_server, &first_trust, &Options::default()).await;
            address_in.send(listener.address()).unwrap();
            let connection = listener.accept().await.unwrap();
            while killed_out.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            (listener, connection)
        });
        drop(runtime);
        drop(kept);
    });
    let address = address_out.recv().unwrap();
    let options = Options { kind: TransportKind::Quic, ..Options::default() };
    let peers = crate::Trust::of_pins([pin]);
    let to = address.to_string();
    let mut connection = crate::connect(&to, &client, &peers, &options).await.unwrap();
    killed_in.send(()).unwrap();
    first.join().unwrap();
    let _again = crate::Listener::bind(address, &server, &trust, &options).await.unwrap();
    let start = Instant::now();
    // Something on the wire, as in any backup; the signs of life would do it a little later.
    let _ = connection.sender.send_control(bye()).await;
    let error = last_error(&mut connection).await;
    assert_eq!(error.failure_kind(), FailureKind::Network, "{error}");
    assert!(error.to_string().contains("reset by peer"), "{error}");
    assert!(start.elapsed() < options.idle / 3, "{:?}: {error}", start.elapsed());
}

#[tokio::test]
async fn a_dropped_peer_is_a_loss_and_a_finished_one_is_not() {
    for kind in KINDS {
        let (client, mut server, _peers) = ends(kind, Options::default()).await;
        client.sender.send_control(bye()).await.unwrap();
        server.receiver.recv().await.unwrap().unwrap();
        drop(client);
        let error = last_error(&mut server).await;
        assert_eq!(error.failure_kind(), FailureKind::Network, "{kind:?}: {error}");

        let (client, mut server, _peers) = ends(kind, Options::default()).await;
        client.sender.send_control(bye()).await.unwrap();
        client.sender.finish().await.unwrap();
        drop(client);
        assert!(server.receiver.recv().await.unwrap().is_some(), "{kind:?}");
        assert!(server.receiver.recv().await.unwrap().is_none(), "{kind:?}");
    }
}

#[tokio::test]
async fn the_reason_of_a_close_reaches_the_peer() {
    for kind in KINDS {
        for (reason, failure) in [
            (CloseReason::Refused("the ticket has expired".into()), FailureKind::Refused),
            (CloseReason::Failed("the ticket printer is on fire".into()), FailureKind::Network),
        ] {
            let (mut client, server, _peers) = ends(kind, Options::default()).await;
            server.sender.close(reason);
            let error = last_error(&mut client).await;
            assert_eq!(error.failure_kind(), failure, "{kind:?}: {error}");
            assert!(error.to_string().contains("the ticket"), "{kind:?}: {error}");
            assert!(server.sender.send_control(bye()).await.is_err(), "{kind:?}");
        }
    }
}

/// What a throttled connection puts on the wire in two seconds, as a ratio of the rate.
async fn throttled(mb_per_second: u64) -> f64 {
    let (client, mut server, _peers) = ends(TransportKind::Quic, Options::default()).await;
    server.receiver.accept_lanes(PayloadPool::new(16, BLOCK_BYTES).unwrap());
    tokio::spawn(async move { while let Ok(Some(_)) = server.receiver.recv().await {} });
    client.sender.open_lanes(2).await.unwrap();
    // MTU discovery is over before the measurement.
    let blank = || block(0, vec![7; BLOCK_BYTES].into());
    for _ in 0..8 {
        client.sender.send_lane(0, blank(), &Pacer::unlimited()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let pacer = Pacer::of_rate(NonZeroU64::new(mb_per_second * 1_000_000).unwrap());
    let (start, before) = (Instant::now(), client.sender.stats().wire_bytes_sent);
    let lanes = [0, 1].map(|lane| {
        let (sender, pacer) = (client.sender.clone(), pacer.clone());
        tokio::spawn(async move {
            loop {
                sender.send_lane(lane, blank(), &pacer).await.unwrap();
            }
        })
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let bytes = client.sender.stats().wire_bytes_sent - before;
    let ratio = bytes as f64 / start.elapsed().as_secs_f64() / (mb_per_second as f64 * 1e6);
    lanes.iter().for_each(|lane| lane.abort());
    ratio
}

#[tokio::test]
async fn the_throttle_keeps_the_rate_on_the_wire() {
    for mb_per_second in [5, 100] {
        // A host that is busy with other tests may starve one measurement, not three.
        let mut ratios = Vec::new();
        while ratios.len() < 3 && !ratios.last().is_some_and(|last| (0.97..1.03).contains(last)) {
            ratios.push(throttled(mb_per_second).await);
            assert!(ratios.iter().all(|ratio| *ratio < 1.03), "{mb_per_second} MB/s: {ratios:?}");
        }
        let last = ratios.last().unwrap();
        assert!((0.97..1.03).contains(last), "{mb_per_second} MB/s: {ratios:?}");
    }
}
