//! A small host with every fault, and what becomes of the disk.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gantry_common::secret::Secret;
use gantry_common::source::{HttpAuth, HttpsSource, ServerTrust};

use self::host::{Fault, Host};
use super::HttpsDisk;
use crate::disk::credentials::CredentialSource;
use crate::disk::remote::RemoteError;
use crate::disk::test_reader::read_all;

mod host;

const MIB: u64 = 1 << 20;

fn cookie(text: &str) -> HttpAuth {
    HttpAuth::Cookie(Secret::new(format!("vmware_soap_session={text}")))
}

fn source(host: &Host, connections: u16) -> HttpsSource {
    HttpsSource {
        host: "127.0.0.1".into(),
        port: host.port,
        trust: ServerTrust::Thumbprint(host.thumbprint.clone()),
        path_and_query: "/folder/vm/vm-flat.vmdk?dsName=ds".into(),
        size_bytes: host.bytes.len() as u64,
        auth: HttpAuth::None,
        connections,
        in_flight: 0,
    }
}

fn open(source: &HttpsSource, credentials: CredentialSource) -> Result<HttpsDisk, RemoteError> {
    HttpsDisk::open(source, "disk".into(), credentials, Duration::from_secs(3))
}

fn fixed(text: &str) -> CredentialSource {
    CredentialSource::new(&cookie(text)).unwrap()
}

fn bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

#[test]
fn what_may_pass_is_borne_and_the_disk_is_whole() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    for fault in
        [Fault::None, Fault::Cut, Fault::Status(500), Fault::Status(503), Fault::WrongRange]
    {
        let host = Host::start(bytes(seed, 7 * MIB + 512), seed, fault);
        let disk = open(&source(&host, 4), fixed("one")).unwrap();
        let (read, read_bytes) = read_all(&disk, MIB, 8).unwrap();
        assert!(read == *host.bytes, "{fault:?}");
        assert_eq!(read_bytes, host.bytes.len() as u64);
        let sent = host.sent_bytes.load(Ordering::Relaxed);
        if fault == Fault::Cut {
            // A block that was cut goes on where it stopped, but for what was still in the pipe.
            assert!(sent < host.bytes.len() as u64 * 3 / 2, "{sent} bytes sent");
        }
    }
}

#[test]
fn what_does_not_pass_fails_the_disk_and_is_named() {
    let cases = [
        (Fault::Always(404), "404"),
        (Fault::Always(500), "HTTP sessions"),
        (Fault::AlwaysWrongRange, "another range"),
        (Fault::Whole, "another range"),
        (Fault::Endless, "another range"),
        (Fault::Grown, "changed while it was read"),
        (Fault::OtherTag, "changed while it was read"),
    ];
    for (fault, words) in cases {
        let host = Host::start(bytes(5, 3 * MIB), 5, fault);
        let began = Instant::now();
        let error = match open(&source(&host, 2), fixed("one")) {
            Ok(disk) => read_all(&disk, MIB, 4).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains(words), "{fault:?}: {error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{fault:?}");
        let sent = host.sent_bytes.load(Ordering::Relaxed);
        // Each attempt ends with its block; what the sockets hold beyond that is the system's.
        assert!(sent < 400 * MIB, "{fault:?}: {sent} bytes sent");
    }
}

#[test]
fn a_session_that_ends_is_replaced_by_a_fresh_one() {
    let host = Host::start(bytes(6, 8 * MIB), 6, Fault::SessionEnds);
    let (credentials, feed) = CredentialSource::fed(cookie("one"));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(feed.wanted());
        feed.give(cookie("two"));
    });
    let disk = open(&source(&host, 4), credentials).unwrap();
    assert!(read_all(&disk, MIB, 8).unwrap().0 == *host.bytes);
    // Without anybody who gives fresh ones it ends.
    let host = Host::start(bytes(6, 8 * MIB), 6, Fault::SessionEnds);
    let disk = open(&source(&host, 4), fixed("one")).unwrap();
    let error = read_all(&disk, MIB, 8).unwrap_err().to_string();
    assert!(error.contains("401") && !error.contains("vmware_soap_session"), "{error}");
}

#[test]
fn only_the_pinned_host_and_the_expected_size_are_taken() {
    let host = Host::start(bytes(7, MIB), 7, Fault::None);
    let mut other = source(&host, 1);
    other.trust = ServerTrust::Thumbprint("00".repeat(32));
    let error = open(&other, fixed("one")).unwrap_err().to_string();
    assert!(error.contains("thumbprint"), "{error}");
    let mut larger = source(&host, 1);
    larger.size_bytes += 512;
    let error = open(&larger, fixed("one")).unwrap_err().to_string();
    assert!(error.contains("bytes"), "{error}");
}

#[test]
fn many_connections_hide_the_way_to_the_host() {
    let host = Host::start(bytes(8, 32 * MIB), 8, Fault::Delay(Duration::from_millis(20)));
    let took = |connections| {
        let disk = open(&source(&host, connections), fixed("one")).unwrap();
        let began = Instant::now();
        assert!(read_all(&disk, MIB, 16).unwrap().0 == *host.bytes);
        began.elapsed()
    };
    let (one, eight) = (took(1), took(8));
    eprintln!("32 MiB with 20 ms a request: {one:?} on one connection, {eight:?} on eight");
    assert!(eight * 2 < one, "{one:?} and {eight:?}");
}
