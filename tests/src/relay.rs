//! A network between two movers that a scenario can measure and disturb.
//!
//! In: the address of a mover. Out: an address in front of it. [`UdpRelay`] counts what passes, as
//! the wire would carry it, and may lose and reorder packets; [`TcpRelay`] cuts connections.
//! Everything ends when the relay is dropped.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// Bytes of the headers of IPv4 and UDP, which are on the wire too.
const HEADERS: u64 = 28;
/// Of the time in which nothing passed through a line, so much is made up for.
const CATCHES_UP: Duration = Duration::from_millis(50);
/// How often threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(50);

/// Passes datagrams of one client on to a server, and back.
#[derive(Debug)]
pub struct UdpRelay {
    /// Where the client connects to.
    pub address: SocketAddr,
    bytes: Arc<AtomicU64>,
    ends: Ends,
}

/// Threads that end when this is dropped.
#[derive(Debug)]
struct Ends {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl UdpRelay {
    /// In front of `server`; of 1000 datagrams it loses `lost` and delivers as many late.
    pub fn start(server: SocketAddr, lost: u32, seed: u64) -> UdpRelay {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket.set_read_timeout(Some(LOOK)).expect("a socket takes a timeout");
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 8 << 20)
                .expect("a socket takes a buffer size");
            Arc::new(socket)
        };
        let (outer, inner) = (socket(), socket());
        inner.connect(server).expect("an address");
        let address = outer.local_addr().expect("bound");
        let bytes = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let client = Arc::new(Mutex::new(None));
        let forth = {
            let (from, to, over) = (Arc::clone(&outer), Arc::clone(&inner), Arc::clone(&over));
            let (bytes, client) = (Arc::clone(&bytes), Arc::clone(&client));
            let mut mishaps = Mishaps::new(lost, seed);
            std::thread::spawn(move || {
                pump(&from, &over, |packet, sender| {
                    *client.lock().expect("no panic") = Some(sender);
                    bytes.fetch_add(packet.len() as u64 + HEADERS, Ordering::Relaxed);
                    mishaps.apply(packet, |packet| drop(to.send(packet)));
                });
            })
        };
        let back = {
            let over = Arc::clone(&over);
            let mut mishaps = Mishaps::new(lost, seed + 1);
            std::thread::spawn(move || {
                pump(&inner, &over, |packet, _| {
                    let client = *client.lock().expect("no panic");
                    if let Some(client) = client {
                        mishaps.apply(packet, |packet| drop(outer.send_to(packet, client)));
                    }
                });
            })
        };
        UdpRelay { address, bytes, ends: Ends { over, threads: vec![forth, back] } }
    }

    /// Bytes that the client has put on the wire so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether its threads still run.
    pub fn is_well(&self) -> bool {
        self.ends.threads.iter().all(|thread| !thread.is_finished())
    }
}

fn pump(from: &UdpSocket, over: &AtomicBool, mut packet: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = vec![0; 65_536];
    while !over.load(Ordering::Relaxed) {
        if let Ok((length, sender)) = from.recv_from(&mut buffer) {
            packet(&buffer[..length], sender);
        }
    }
}

/// Loses and delays packets by a seed.
struct Mishaps {
    lost: u32,
    random: Rng,
    late: Vec<Vec<u8>>,
}

impl Mishaps {
    fn new(lost: u32, seed: u64) -> Mishaps {
        Mishaps { lost, random: Rng::with_seed(seed), late: Vec::new() }
    }

    fn apply(&mut self, packet: &[u8], mut send: impl FnMut(&[u8])) {
        match self.random.u32(0..1000) {
            chance if chance < self.lost => {}
            chance if chance < 2 * self.lost => self.late.push(packet.to_vec()),
            _ => {
                send(packet);
                self.late.drain(..).for_each(|late| send(&late));
            }
        }
    }
}

/// Passes TCP connections on to a server, until they are cut.
#[derive(Debug)]
pub struct TcpRelay {
    /// Where clients connect to.
    pub address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
    cuts: AtomicU64,
    bytes: Arc<AtomicU64>,
    // Joined on drop.
    _ends: Ends,
}

impl TcpRelay {
    /// In front of `server`.
    pub fn start(server: SocketAddr) -> TcpRelay {
        TcpRelay::with_rate(server, u64::MAX)
    }

    /// In front of `server`; all clients together send it that many bytes a second.
    pub fn with_rate(server: SocketAddr, bytes_per_second: u64) -> TcpRelay {
        let line = Arc::new(Line { bytes_per_second, free_at: Mutex::new(Instant::now()) });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a listener can wait");
        let address = listener.local_addr().expect("bound");
        let open = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(AtomicU64::new(0));
        let accept = {
            let (open, over, bytes) = (Arc::clone(&open), Arc::clone(&over), Arc::clone(&bytes));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((client, _)) => join(client, server, &open, &bytes, &line),
                        Err(_) => std::thread::sleep(LOOK / 10),
                    }
                }
            })
        };
        let ends = Ends { over, threads: vec![accept] };
        TcpRelay { address, open, cuts: AtomicU64::new(0), bytes, _ends: ends }
    }

    /// Cuts every connection, in both directions at once.
    pub fn cut(&self) {
        for stream in self.open.lock().expect("no panic").drain(..) {
            if stream.shutdown(std::net::Shutdown::Both).is_ok() {
                self.cuts.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Bytes that clients have sent to the server so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends of connections that were cut while they were open.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for TcpRelay {
    fn drop(&mut self) {
        self.cut();
    }
}

/// A line of a certain width that several connections share.
struct Line {
    bytes_per_second: u64,
    /// When what was sent so far has passed.
    free_at: Mutex<Instant>,
}

impl Line {
    /// Waits until these bytes have passed.
    fn pass(&self, bytes: usize) {
        if self.bytes_per_second == u64::MAX {
            return;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let passed = {
            let mut free_at = self.free_at.lock().expect("no panic");
            // A thread that woke up late makes up for it: a line has no such pauses.
            let idle_since = Instant::now().checked_sub(CATCHES_UP).unwrap_or(*free_at);
            *free_at = (*free_at).max(idle_since) + takes;
            *free_at
        };
        std::thread::sleep(passed.saturating_duration_since(Instant::now()));
    }
}

/// Copies both ways until one end closes; the copying threads end with the streams.
fn join(
    client: TcpStream,
    server: SocketAddr,
    open: &Mutex<Vec<TcpStream>>,
    bytes: &Arc<AtomicU64>,
    line: &Arc<Line>,
) {
    let Ok(server) = TcpStream::connect(server) else { return };
    let _ = client.set_nonblocking(false);
    let clone = |stream: &TcpStream| stream.try_clone().expect("a stream can be shared");
    let forth = (clone(&client), clone(&server), Arc::clone(bytes));
    let back = (clone(&server), clone(&client), Arc::default());
    let lines = [Some(Arc::clone(line)), None];
    for ((mut from, mut to, bytes), line) in [forth, back].into_iter().zip(lines) {
        std::thread::spawn(move || {
            copy(&mut from, &mut to, &bytes, line.as_deref());
            let _ = to.shutdown(std::net::Shutdown::Both);
            let _ = from.shutdown(std::net::Shutdown::Both);
        });
    }
    open.lock().expect("no panic").extend([client, server]);
}

fn copy(from: &mut TcpStream, to: &mut TcpStream, bytes: &AtomicU64, line: Option<&Line>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if let Some(line) = line {
            line.pass(length);
        }
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}
