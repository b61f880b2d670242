//! The ring against real files, pipes and threads: what it promises in every mode there is.
//!
//! In: temporary files. Out: pass or fail. Must not: need root or a device.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use gantry_uring::buffer::{BufferPool, PooledBuf};
use gantry_uring::direct::{enable_direct, open_read_only};
use gantry_uring::files::FileSlot;
use gantry_uring::probe::Mode;
use gantry_uring::ring::{Completion, PushRefusal, Ring, RingConfig};

const FILE: FileSlot = FileSlot(0);
const UNIT: usize = 4096;

fn ring(entries: u32, mode: Mode) -> Ring {
    Ring::new(&RingConfig { entries, modes: vec![mode] }).unwrap()
}

fn best_ring(entries: u32) -> Ring {
    Ring::new(&RingConfig::new(entries)).unwrap()
}

fn with_file(mut ring: Ring, file: impl Into<OwnedFd>) -> Ring {
    assert!(ring.register_files(4).unwrap().is_registered());
    assert!(ring.set_file(FILE, file).unwrap().is_none());
    ring
}

fn one(ring: &mut Ring) -> Completion {
    assert_eq!(ring.wait(1, Some(Duration::from_secs(20))).unwrap().ready, 1);
    ring.completions().next().unwrap()
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed * 31 + i * 7 + i / 256) as u8).collect()
}

fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

/// Writes ten units, syncs, and reads them back, many in flight.
fn round_trip(mut ring: Ring, direct: bool, registered: bool) {
    let pool = BufferPool::new(10, UNIT).unwrap();
    if registered {
        assert!(ring.register_pool(&pool).is_registered());
        assert!(ring.register_pool(&pool).is_registered(), "twice is once");
    }
    let file = tempfile::tempfile().unwrap();
    if direct && !enable_direct(&file).unwrap().direct {
        eprintln!("the temporary directory cannot do O_DIRECT: the buffered case stands for it");
    }
    let mut ring = with_file(ring, file);
    for number in 0..10 {
        let mut buf = pool.try_take().unwrap();
        buf.copy_from_slice(&pattern(number, UNIT));
        ring.write(FILE, (number * UNIT) as u64, UNIT, buf, number as u64).unwrap();
    }
    assert_eq!((ring.in_flight(), ring.room()), (10, 6));
    assert_eq!(ring.wait(10, None).unwrap().ready, 10);
    let mut seen: Vec<u64> = ring
        .completions()
        .map(|done| {
            assert_eq!(done.result.unwrap(), UNIT as u32);
            assert!(done.buf.unwrap().is_of(&pool));
            done.user
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..10).collect::<Vec<u64>>());
    ring.fdatasync(FILE, 77).unwrap();
    let done = one(&mut ring);
    assert_eq!((done.user, done.result.unwrap(), done.buf.is_none()), (77, 0, true));
    for number in 0..10 {
        let buf = pool.try_take().unwrap();
        ring.read(FILE, (number * UNIT) as u64, UNIT, buf, number as u64).unwrap();
    }
    ring.wait(10, None).unwrap();
    for done in ring.completions() {
        assert_eq!(done.result.unwrap(), UNIT as u32);
        assert_eq!(done.buf.unwrap()[..], pattern(done.user as usize, UNIT));
    }
    assert_eq!((ring.in_flight(), pool.free()), (0, 10));
}

#[test]
fn bytes_come_back_in_every_mode_direct_or_not_registered_or_not() {
    for mode in Mode::ALL {
        for (direct, registered) in [(false, false), (false, true), (true, false), (true, true)] {
            round_trip(ring(16, mode), direct, registered);
        }
    }
}

#[test]
fn several_pools_are_registered_and_too_many_buffers_are_not() {
    let mut ring = best_ring(4);
    let pools = [BufferPool::new(3, UNIT).unwrap(), BufferPool::new(5, 2 * UNIT).unwrap()];
    assert!(pools.iter().all(|pool| ring.register_pool(pool).is_registered()));
    let huge = BufferPool::new(20_000, UNIT).unwrap();
    let refused = ring.register_pool(&huge);
    assert!(format!("{refused:?}").contains("16384"), "{refused:?}");
    let file = file_of(&pattern(5, 2 * UNIT));
    let mut ring = with_file(ring, file.reopen().unwrap());
    for pool in [&pools[0], &pools[1], &huge] {
        ring.read(FILE, 0, UNIT, pool.try_take().unwrap(), 1).unwrap();
        let done = one(&mut ring);
        assert_eq!(done.result.unwrap(), UNIT as u32);
        assert_eq!(done.buf.unwrap()[..UNIT], pattern(5, UNIT));
    }
}

#[test]
fn without_a_file_table_slot_or_with_bad_ranges_the_buffer_comes_back() {
    let mut ring = best_ring(2);
    let pool = BufferPool::new(1, UNIT).unwrap();
    let take = || pool.try_take().unwrap();
    let refusal = |result: Result<(), gantry_uring::ring::PushError>| {
        let error = result.unwrap_err();
        assert!(error.buf.is_some());
        error.refusal
    };
    assert_eq!(refusal(ring.read(FILE, 0, 1, take(), 0)), PushRefusal::NoFile);
    assert!(ring.set_file(FILE, tempfile::tempfile().unwrap()).is_err());
    let mut ring = with_file(ring, tempfile::tempfile().unwrap());
    assert_eq!(refusal(ring.read(FileSlot(1), 0, 1, take(), 0)), PushRefusal::NoFile);
    assert_eq!(refusal(ring.read(FileSlot(9), 0, 1, take(), 0)), PushRefusal::NoFile);
    assert_eq!(ring.fdatasync(FileSlot(9), 0).unwrap_err().refusal, PushRefusal::NoFile);
    assert_eq!(refusal(ring.read(FILE, 0, UNIT + 1, take(), 0)), PushRefusal::Range);
    let end = UNIT + 1..UNIT + 1;
    assert_eq!(refusal(ring.write_range(FILE, 0, end, take(), 0)), PushRefusal::Range);
    assert_eq!(refusal(ring.write(FILE, i64::MAX as u64, 1, take(), 0)), PushRefusal::Range);
    assert_eq!(refusal(ring.write(FILE, u64::MAX, 0, take(), 0)), PushRefusal::Range);
    assert!(Ring::new(&RingConfig::new(0)).is_err());
    assert!(Ring::new(&RingConfig::new(100_000)).is_err());
}

#[test]
fn a_short_read_at_the_end_is_reported_and_can_be_continued() {
    let file = file_of(&pattern(1, 5000));
    let (direct, _) = open_read_only(file.path(), true).unwrap();
    let mut ring = with_file(best_ring(2), direct);
    let pool = BufferPool::new(1, 8192).unwrap();
    ring.read(FILE, 0, 8192, pool.try_take().unwrap(), 1).unwrap();
    let done = one(&mut ring);
    assert_eq!((done.result.unwrap(), &done.buf.unwrap()[..5000]), (5000, &pattern(1, 5000)[..]));
    ring.read(FILE, 8192, 4096, pool.try_take().unwrap(), 2).unwrap();
    assert_eq!(one(&mut ring).result.unwrap(), 0);

    ring.set_file(FILE, file.reopen().unwrap()).unwrap();
    ring.read(FILE, 0, 1000, pool.try_take().unwrap(), 3).unwrap();
    let buf = one(&mut ring).buf.unwrap();
    ring.read_range(FILE, 1000, 1000..8192, buf, 4).unwrap();
    let done = one(&mut ring);
    assert_eq!((done.result.unwrap(), &done.buf.unwrap()[..5000]), (4000, &pattern(1, 5000)[..]));
}

#[test]
fn errors_of_the_kernel_reach_the_caller_with_the_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = with_file(best_ring(2), File::open(dir.path()).unwrap());
    let pool = BufferPool::new(1, UNIT).unwrap();
    ring.read(FILE, 0, UNIT, pool.try_take().unwrap(), 9).unwrap();
    let done = one(&mut ring);
    assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::IsADirectory);
    assert!(done.buf.is_some());
}

#[test]
fn a_full_queue_hands_the_buffer_back_and_recovers() {
    let file = file_of(&[3; UNIT]);
    let mut ring = with_file(best_ring(3), file.reopen().unwrap());
    let pool = BufferPool::new(8, UNIT).unwrap();
    for round in 0..50u64 {
        let bufs: Vec<PooledBuf> = std::iter::from_fn(|| pool.try_take()).collect();
        let mut refused = 0;
        for buf in bufs {
            if let Err(error) = ring.read(FILE, 0, UNIT, buf, round) {
                assert_eq!(error.refusal, PushRefusal::QueueFull);
                assert!(error.buf.is_some());
                refused += 1;
            }
        }
        assert_eq!((refused, ring.room()), (5, 0));
        let first = ring.wait(1, None).unwrap().ready;
        assert!((1..=3).contains(&first));
        assert_eq!(ring.wait(99, None).unwrap().ready, 3, "no more than is in flight");
        assert_eq!(ring.room(), 0, "what is not handed out still takes room");
        assert_eq!(ring.completions().count(), 3);
    }
    assert_eq!(ring.wait(1, None).unwrap().ready, 0, "nothing in flight, nothing to wait for");
}

#[test]
fn a_file_in_use_is_not_exchanged_and_an_idle_one_is() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut ring = with_file(best_ring(2), reader);
    let pool = BufferPool::new(1, UNIT).unwrap();
    ring.read(FILE, 0, 3, pool.try_take().unwrap(), 1).unwrap();
    let other = || tempfile::tempfile().unwrap();
    let busy = |result: io::Result<Option<OwnedFd>>| result.unwrap_err().kind();
    assert_eq!(busy(ring.set_file(FILE, other())), io::ErrorKind::ResourceBusy);
    ring.submit().unwrap();
    assert_eq!(busy(ring.clear_file(FILE)), io::ErrorKind::ResourceBusy);
    writer.write_all(b"abc").unwrap();
    assert_eq!(&one(&mut ring).buf.unwrap()[..3], b"abc");
    assert!(ring.set_file(FILE, other()).unwrap().is_some());
    assert!(ring.clear_file(FILE).unwrap().is_some());
    assert!(ring.clear_file(FILE).unwrap().is_none());
}

#[test]
fn a_wait_ends_at_its_timeout() {
    for mode in Mode::ALL {
        let (reader, _writer) = io::pipe().unwrap();
        let mut ring = with_file(ring(2, mode), reader);
        ring.set_drop_wait(Duration::from_millis(20));
        let pool = BufferPool::new(1, UNIT).unwrap();
        ring.read(FILE, 0, 3, pool.try_take().unwrap(), 1).unwrap();
        let start = Instant::now();
        assert_eq!(ring.wait(1, Some(Duration::from_millis(30))).unwrap().ready, 0);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(30) && took < Duration::from_secs(5), "{took:?}");
        assert_eq!(ring.wait(1, Some(Duration::ZERO)).unwrap().ready, 0);
        assert_eq!(ring.wait(0, None).unwrap().ready, 0);
    }
}

#[test]
fn a_waker_ends_a_wait_from_another_thread_again_and_again() {
    for mode in Mode::ALL {
        let (reader, _writer) = io::pipe().unwrap();
        let mut ring = with_file(ring(4, mode), reader);
        ring.set_drop_wait(Duration::from_millis(20));
        let pool = BufferPool::new(1, UNIT).unwrap();
        let waker = ring.waker().unwrap();
        // Nothing in flight: the wait is for the waker alone. An early wake is not lost.
        waker.wake();
        waker.wake();
        assert!(ring.wait(1, None).unwrap().woken);
        let nothing = ring.wait(1, Some(Duration::from_millis(10))).unwrap();
        assert!(!nothing.woken, "two wakes before a wait are one");
        ring.read(FILE, 0, 3, pool.try_take().unwrap(), 1).unwrap();
        for _ in 0..5 {
            let waker = waker.clone();
            let other = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                waker.wake();
            });
            let waited = ring.wait(1, Some(Duration::from_secs(20))).unwrap();
            assert_eq!((waited.ready, waited.woken), (0, true));
            other.join().unwrap();
        }
    }
}

#[test]
fn with_a_waker_a_wait_still_gathers_as_many_as_asked() {
    let file = file_of(&[4; UNIT]);
    let mut ring = with_file(best_ring(8), file.reopen().unwrap());
    let _waker = ring.waker().unwrap();
    let pool = BufferPool::new(8, UNIT).unwrap();
    for user in 0..8 {
        ring.read(FILE, 0, UNIT, pool.try_take().unwrap(), user).unwrap();
    }
    let waited = ring.wait(8, None).unwrap();
    assert_eq!((waited.ready, waited.woken), (8, false));
    assert_eq!(ring.completions().count(), 8);
}

#[test]
fn buffers_returned_by_other_threads_wake_the_ring_that_waits_for_one() {
    let mut ring = best_ring(2);
    let waker = ring.waker().unwrap();
    let hook = std::sync::Arc::new(move || waker.wake());
    let pool = BufferPool::with_notify(1, UNIT, hook).unwrap();
    let held = pool.try_take().unwrap();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        drop(held);
    });
    let mut waits = 0;
    let buf = loop {
        if let Some(buf) = pool.try_take() {
            break buf;
        }
        assert!(ring.wait(1, Some(Duration::from_secs(20))).unwrap().woken);
        waits += 1;
    };
    assert_eq!((buf.len(), waits), (UNIT, 1));
    other.join().unwrap();
}

#[test]
fn a_dropped_ring_finishes_its_writes_and_returns_its_buffers() {
    for mode in Mode::ALL {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut ring = with_file(ring(16, mode), file.reopen().unwrap());
        let pool = BufferPool::new(16, 64 << 10).unwrap();
        for number in 0..16u64 {
            let mut buf = pool.try_take().unwrap();
            buf.fill(number as u8 + 1);
            ring.write(FILE, number << 16, 64 << 10, buf, number).unwrap();
            if number == 7 {
                ring.submit().unwrap();
            }
        }
        drop(ring);
        assert_eq!(pool.free(), 16);
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert!(bytes.iter().enumerate().all(|(i, &byte)| byte == (i >> 16) as u8 + 1));
    }
}

#[test]
fn a_dropped_ring_cancels_what_never_ends() {
    let (reader, _writer) = io::pipe().unwrap();
    let mut ring = with_file(best_ring(2), reader);
    let pool = BufferPool::new(2, UNIT).unwrap();
    ring.read(FILE, 0, 3, pool.try_take().unwrap(), 1).unwrap();
    ring.submit().unwrap();
    ring.set_drop_wait(Duration::from_millis(20));
    drop(ring);
    assert_eq!(pool.free(), 2);
}
