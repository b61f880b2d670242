//! Servers that cut, mix, lie and never end.

use std::sync::atomic::AtomicU32;

use super::fake::{Fake, Fault, VIOLATIONS, option_reply};
use super::{content, open};
use crate::disk::nbd::error::NbdError;
use crate::disk::nbd::handshake::{Handshake, Step};
use crate::disk::nbd::wire;
use crate::disk::test_reader::read_all;

const BLOCK: u64 = 256 << 10;

fn fake(seed: u64, fault: Option<Fault>) -> Fake {
    let mut random = fastrand::Rng::with_seed(seed);
    let size_bytes = (4 << 20) + 512 * random.u64(0..1000);
    let bytes = content(&mut random, size_bytes);
    Fake { bytes, seed, fault, faulty_at: random.u32(0..4), reads: AtomicU32::new(0) }
}

#[test]
fn replies_in_any_pieces_and_order_make_the_disk() {
    let first = fastrand::u64(..1 << 40);
    for seed in first..first + 20 {
        eprintln!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let fake = fake(seed, None).listen(&socket);
        let (read, read_bytes) = read_all(&open(&socket), BLOCK, 16).unwrap();
        assert!(read == fake.bytes);
        assert!(read_bytes <= fake.bytes.len() as u64);
    }
}

#[test]
fn every_broken_rule_fails_the_disk_and_a_cut_is_mended() {
    let first = fastrand::u64(..1 << 40);
    for seed in first..first + 3 {
        for fault in VIOLATIONS.into_iter().chain([Fault::Cut]) {
            eprintln!("seed {seed}, {fault:?}");
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("s");
            let fake = fake(seed, Some(fault)).listen(&socket);
            let read = read_all(&open(&socket), BLOCK, 6);
            match (fault, read) {
                (Fault::Cut, read) => assert!(read.unwrap().0 == fake.bytes),
                (_, Err(error)) => assert!(error.to_string().contains("protocol"), "{error}"),
                (_, Ok(_)) => panic!("it was taken for an answer"),
            }
        }
    }
}

/// What an honest server sends in the handshake, piece by piece.
fn transcript() -> Vec<Vec<u8>> {
    let mut greeting = wire::MAGIC.to_be_bytes().to_vec();
    greeting.extend(wire::OPTION_MAGIC.to_be_bytes());
    greeting.extend(3u16.to_be_bytes());
    let mut context = 9u32.to_be_bytes().to_vec();
    context.extend(wire::CONTEXT.as_bytes());
    let mut export = vec![0, 0];
    export.extend((1u64 << 30).to_be_bytes());
    export.extend([1, 1]);
    let mut sizes = vec![0, 3];
    sizes.extend([512u32, 4096, 1 << 25].iter().flat_map(|size| size.to_be_bytes()));
    vec![
        greeting,
        option_reply(wire::OPT_STRUCTURED_REPLY, wire::REP_ACK, &[]),
        option_reply(wire::OPT_SET_META_CONTEXT, wire::REP_META_CONTEXT, &context),
        option_reply(wire::OPT_SET_META_CONTEXT, wire::REP_ACK, &[]),
        option_reply(wire::OPT_GO, wire::REP_INFO, &export),
        option_reply(wire::OPT_GO, wire::REP_INFO, &sizes),
        option_reply(wire::OPT_GO, wire::REP_ACK, &[]),
    ]
}

/// Runs a handshake over these bytes; nothing if they end too early.
fn shake(bytes: &[u8]) -> Option<Result<Step, NbdError>> {
    let mut machine = Handshake::new("x", false);
    let mut rest = bytes;
    loop {
        let (now, later) = rest.split_at_checked(machine.wants())?;
        rest = later;
        match machine.take(now) {
            Ok(Step::More) => assert!(machine.take_output().len() < 10_000),
            other => return Some(other),
        }
    }
}

#[test]
fn a_handshake_with_any_spoilt_bytes_ends() {
    let honest: Vec<u8> = transcript().concat();
    let Some(Ok(Step::Done(agreed))) = shake(&honest) else { panic!("the honest one works") };
    assert_eq!((agreed.context, agreed.block_min, agreed.multi_conn), (Some(9), 512, true));
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let mut bytes = honest.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            match random.u8(..3) {
                0 => bytes[at] = random.u8(..),
                1 => bytes[at] ^= 1 << random.u8(..8),
                _ => drop(bytes.splice(at..at, (0..random.usize(..40)).map(|_| 0xff))),
            }
        }
        if let Some(Ok(Step::Done(agreed))) = shake(&bytes) {
            assert!(agreed.size_bytes > 0 && agreed.read_max >= agreed.block_min);
            assert_eq!(agreed.size_bytes % u64::from(agreed.block_min), 0);
        }
    }
}

#[test]
fn endless_and_misplaced_replies_end_the_handshake() {
    let pieces = transcript();
    let mut endless = pieces[..2].concat();
    for _ in 0..300 {
        endless.extend(option_reply(wire::OPT_SET_META_CONTEXT, wire::REP_META_CONTEXT, &[0; 4]));
    }
    assert!(matches!(shake(&endless), Some(Err(NbdError::Violation(_)))));
    let mut infos = pieces[..4].concat();
    for _ in 0..300 {
        infos.extend(option_reply(wire::OPT_GO, wire::REP_INFO, &[0, 1, b'x']));
    }
    assert!(matches!(shake(&infos), Some(Err(NbdError::Violation(_)))));
    let mut long = pieces[..4].concat();
    long.extend(option_reply(wire::OPT_GO, wire::REP_INFO, &[0; 9000]));
    assert!(matches!(shake(&long), Some(Err(NbdError::Violation(_)))));
    let mut other = pieces[..1].concat();
    other.extend(option_reply(wire::OPT_GO, wire::REP_ACK, &[]));
    assert!(matches!(shake(&other), Some(Err(NbdError::Violation(_)))));
    let mut bare = pieces[..4].concat();
    bare.extend(option_reply(wire::OPT_GO, wire::REP_ACK, &[]));
    assert!(matches!(shake(&bare), Some(Err(NbdError::Violation(_)))));
    let mut old = pieces[0].clone();
    old[8..16].copy_from_slice(&wire::OLD_STYLE_MAGIC.to_be_bytes());
    assert!(matches!(shake(&old), Some(Err(NbdError::NotNbd(_)))));
}

#[test]
fn a_server_that_knows_little_is_taken_as_it_is() {
    let refuse = |option| option_reply(option, wire::REP_ERR_UNSUP, b"no");
    let mut bytes = transcript()[0].clone();
    bytes.extend(refuse(wire::OPT_STRUCTURED_REPLY));
    bytes.extend(refuse(wire::OPT_GO));
    bytes.extend((1u64 << 20).to_be_bytes());
    bytes.extend([0, 1]);
    let Some(Ok(Step::Done(agreed))) = shake(&bytes) else { panic!("EXPORT_NAME serves") };
    assert_eq!((agreed.size_bytes, agreed.structured, agreed.context), (1 << 20, false, None));
}
