//! qemu-nbd and nbdkit as servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_common::source::{NbdSource, NbdTls};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::{MIB, content, open, unix};
use crate::disk::nbd::NbdDisk;
use crate::disk::remote::RemoteSource;
use crate::disk::test_reader::read_all;

/// A server at a socket; ended when dropped.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a server and waits for its socket; nothing where the program is not installed.
    fn start(program: &str, socket: &Path, arguments: &[&str]) -> Option<Server> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: {program}: {error}");
                return None;
            }
        };
        let mut server = Server { child, socket: socket.to_owned() };
        let started = Instant::now();
        while !socket.exists() {
            assert!(started.elapsed() < Duration::from_secs(20), "{program} does not listen");
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{program} {arguments:?}: {ended:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    fn qemu(socket: &Path, format: &str, image: &Path, more: &[&str]) -> Option<Server> {
        let socket_text = socket.to_str().unwrap();
        let mut arguments = vec!["-r", "-t", "-f", format, "-k", socket_text];
        arguments.extend(more);
        arguments.push(image.to_str().unwrap());
        Server::start("qemu-nbd", socket, &arguments)
    }

    fn nbdkit(socket: &Path, arguments: &[&str]) -> Option<Server> {
        let mut all = vec!["-f", "-r", "-U", socket.to_str().unwrap()];
        all.extend(arguments);
        Server::start("nbdkit", socket, &all)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agrees(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn qemu_nbd_serves_raw_and_qcow2_and_holes_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let mut bytes = content(&mut random, 24 * MIB + 512);
    bytes[8 * MIB as usize..16 * MIB as usize].fill(0);
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, &bytes).unwrap();
    let qcow2 = dir.path().join("disk.qcow2");
    agrees("qemu-img", &["convert", "-O", "qcow2", raw.to_str().unwrap(), qcow2.to_str().unwrap()]);
    for (format, image, more) in
        [("raw", &raw, &["-e", "8"][..]), ("qcow2", &qcow2, &["-e", "8"]), ("qcow2", &qcow2, &[])]
    {
        let socket = dir.path().join(format!("{format}{}", more.len()));
        let Some(server) = Server::qemu(&socket, format, image, more) else { return };
        let disk = open(&server.socket);
        assert_eq!(disk.size_bytes(), bytes.len() as u64);
        assert_eq!(disk.connections, if more.is_empty() { 1 } else { 4 }, "multi-conn");
        let (read, read_bytes) = read_all(&disk, MIB, 12).unwrap();
        assert!(read == bytes, "{format}");
        if format == "qcow2" {
            assert!(read_bytes <= 17 * MIB, "{read_bytes} bytes read");
        }
        // A server for one client keeps a second one waiting.
        if !more.is_empty() {
            assert_ne!(disk.fingerprint(), open(&server.socket).fingerprint());
        }
    }
}

#[test]
fn nbdkit_serves_patterns_with_delays_and_small_requests() {
    let dir = tempfile::tempdir().unwrap();
    let size = 9 * MIB;
    let mut expected = vec![0u8; size as usize];
    for (at, word) in expected.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(8 * at as u64).to_be_bytes());
    }
    let cases: [&[&str]; 4] = [
        &["pattern", "size=9M"],
        &["--filter=delay", "pattern", "size=9M", "rdelay=20ms"],
        &[
            "--filter=blocksize-policy",
            "pattern",
            "size=9M",
            "blocksize-minimum=4k",
            "blocksize-maximum=64k",
            "blocksize-preferred=64k",
            "blocksize-error-policy=error",
        ],
        &["--filter=noextents", "--no-sr", "pattern", "size=9M"],
    ];
    for (number, arguments) in cases.into_iter().enumerate() {
        let socket = dir.path().join(number.to_string());
        let Some(server) = Server::nbdkit(&socket, arguments) else { return };
        let disk = open(&server.socket);
        let (read, _) = read_all(&disk, MIB, 8).unwrap();
        assert!(read == expected, "{arguments:?}");
    }
}

#[test]
fn a_sparse_nbdkit_disk_is_read_where_it_has_data() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let stats = dir.path().join("stats");
    let stats_option = format!("statsfile={}", stats.display());
    let arguments =
        ["--filter=stats", "data", "data=@0x40000000 1 @0x80000000 2 3", "size=3G", &stats_option];
    let Some(mut server) = Server::nbdkit(&socket, &arguments) else { return };
    let disk = open(&server.socket);
    let data: Vec<u64> = {
        let mut at = 0;
        std::iter::from_fn(|| {
            let found = disk.next_data(at).unwrap()?;
            at = found.1;
            Some(found.0)
        })
        .collect()
    };
    let holds = |offset: u64| data.iter().any(|start| (offset - 65_536..=offset).contains(start));
    assert!(holds(1 << 30) && holds(1 << 31), "{data:x?}");
    assert!(data.len() < 10, "{data:x?}");
    drop(disk);
    let pid = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    server.child.wait().unwrap();
    let text = fs::read_to_string(&stats).unwrap();
    assert!(!text.contains("\nread:"), "nothing was read: {text}");
}

#[test]
fn errors_that_pass_are_borne_and_those_that_stay_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("passing");
    let arguments =
        ["--filter=error", "pattern", "size=16M", "error-pread=EIO", "error-pread-rate=20%"];
    let Some(server) = Server::nbdkit(&socket, &arguments) else { return };
    let disk = open(&server.socket);
    read_all(&disk, MIB, 8).unwrap();
    for (name, error, word) in [("eio", "EIO", "EIO"), ("eperm", "EPERM", "EPERM")] {
        let socket = dir.path().join(name);
        let error = format!("error-pread={error}");
        let arguments = ["--filter=error", "pattern", "size=16M", &error, "error-pread-rate=100%"];
        let server = Server::nbdkit(&socket, &arguments).unwrap();
        let disk = open(&server.socket);
        let text = read_all(&disk, MIB, 8).unwrap_err().to_string();
        assert!(text.contains(word) && text.contains("log"), "{text}");
    }
}

#[test]
fn a_server_that_comes_back_is_read_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let arguments = ["--filter=delay", "pattern", "size=64M", "rdelay=30ms"];
    let Some(server) = Server::nbdkit(&socket, &arguments) else { return };
    let disk = open(&socket);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_all(&disk, MIB, 4));
        std::thread::sleep(Duration::from_millis(120));
        drop(server);
        fs::remove_file(&socket).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let _again = Server::nbdkit(&socket, &arguments).unwrap();
        let (read, _) = reading.join().unwrap().unwrap();
        assert_eq!(read[24..32], [0, 0, 0, 0, 0, 0, 0, 24]);
    });
    // Another disk in its place is not taken for it.
    let again = fs::remove_file(&socket).map(|()| Server::nbdkit(&socket, &["memory", "1M"]));
    let other = again.unwrap();
    let error = read_all(&disk, MIB, 4).unwrap_err();
    assert!(error.to_string().contains("changed while it was read"), "{error}");
    drop(other);
}

#[test]
fn a_server_that_stays_away_fails_the_disk_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let arguments = ["--filter=delay", "pattern", "size=64M", "rdelay=50ms"];
    let Some(server) = Server::nbdkit(&socket, &arguments) else { return };
    let disk = NbdDisk::open(&unix(&socket), Duration::from_millis(700)).unwrap();
    drop(server);
    let started = Instant::now();
    let error = read_all(&disk, MIB, 4).unwrap_err();
    assert!(error.to_string().contains("check"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
    // And so does everything that is asked of it later, at once.
    assert_eq!(disk.next_data(0).unwrap_err(), error);
    let none = NbdDisk::open(&unix(&dir.path().join("none")), Duration::from_secs(1));
    assert!(none.unwrap_err().to_string().contains("cannot connect"));
}

/// A CA, a server's certificate for `name` and a client's, as files of GnuTLS' names.
fn certificates(dir: &Path, name: &str) -> String {
    let key = || KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = key();
    let ca = params.self_signed(&ca_key).unwrap();
    fs::write(dir.join("ca-cert.pem"), ca.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let mut thumbprint = String::new();
    for (role, name) in [("server", name), ("client", "client")] {
        let own = key();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let signed = params.signed_by(&own, &issuer).unwrap();
        fs::write(dir.join(format!("{role}-cert.pem")), signed.pem()).unwrap();
        let file = dir.join(format!("{role}-key.pem"));
        fs::write(&file, own.serialize_pem()).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        if role == "server" {
            let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
            let hash = suite.tls13().unwrap().common.hash_provider;
            thumbprint =
                hash.hash(signed.der()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        }
    }
    thumbprint
}

#[test]
fn tls_is_spoken_with_both_servers_and_only_with_whom_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    fs::create_dir(&pki).unwrap();
    let thumbprint = certificates(&pki, "disks.example");
    let pki_text = pki.to_str().unwrap();
    let raw = dir.path().join("disk.raw");
    let bytes = content(&mut fastrand::Rng::with_seed(3), 5 * MIB);
    fs::write(&raw, &bytes).unwrap();
    let object = format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={pki_text}");
    let with_tls = |socket: &Path, tls: NbdTls| NbdSource { tls: Some(tls), ..unix(socket) };
    let named = NbdTls {
        ca_file: Some(pki.join("ca-cert.pem")),
        client_certificate: Some(pki.join("client-cert.pem")),
        client_key: Some(pki.join("client-key.pem")),
        server_name: Some("disks.example".into()),
        thumbprint: None,
    };
    let pinned = NbdTls { ca_file: None, thumbprint: Some(thumbprint.clone()), ..named.clone() };
    let (one, two) = (dir.path().join("qemu"), dir.path().join("nbdkit"));
    let certificates = format!("--tls-certificates={pki_text}");
    let file = format!("file={}", raw.display());
    let nbdkit = ["--tls=require", &certificates, "--tls-verify-peer", "file", &file];
    let servers = [
        Server::qemu(&one, "raw", &raw, &["--object", &object, "--tls-creds", "tls0"]),
        Server::nbdkit(&two, &nbdkit),
    ];
    let patience = Duration::from_secs(2);
    for server in servers.iter().flatten() {
        for tls in [&named, &pinned] {
            let disk = NbdDisk::open(&with_tls(&server.socket, tls.clone()), patience).unwrap();
            assert!(read_all(&disk, MIB, 4).unwrap().0 == bytes);
        }
        let other_name = NbdTls { server_name: Some("other.example".into()), ..named.clone() };
        let other_print = NbdTls { thumbprint: Some("00".repeat(32)), ..pinned.clone() };
        for tls in [other_name, other_print] {
            let error = NbdDisk::open(&with_tls(&server.socket, tls), patience).unwrap_err();
            assert!(error.to_string().contains("TLS failed"), "{error}");
        }
        let plain = NbdDisk::open(&unix(&server.socket), patience).unwrap_err();
        assert!(plain.to_string().contains("TLS"), "{plain}");
    }
}

#[test]
fn an_export_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, [1; 4096]).unwrap();
    let socket = dir.path().join("s");
    let Some(server) = Server::qemu(&socket, "raw", &raw, &["-x", "right"]) else { return };
    let source = |name: &str| NbdSource { export: name.into(), ..unix(&server.socket) };
    let patience = Duration::from_secs(1);
    let error = NbdDisk::open(&source("wrong"), patience).unwrap_err().to_string();
    assert!(error.contains("'wrong'") && error.contains("export"), "{error}");
    NbdDisk::open(&source("right"), patience).unwrap();
}
