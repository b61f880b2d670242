//! The network stages: stored blocks from one thread to another over loopback.
//!
//! In: the sample, compressed. Out: a [`Stage`] for QUIC at Ethernet's MTU, QUIC as it finds its
//! path (jumbo on loopback), and TLS over TCP; each beside the bare library with the same windows,
//! MTU and payloads. Invariant: sender and receiver have a thread, a runtime and, where there are
//! two, a core each; a transfer counts as done when the receiver has everything.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use gantry_common::units::Compression;
use gantry_dataplane::transport::{Options, TransportKind};
use gantry_uring::thread::{available_cores, cpu_time_thread, pin_current_thread};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::stored::{self, Stored};
use super::{Bench, bare_quinn, bare_tls, gantry_link};
use crate::measure::{Contender, Cost, STAGE_BAR, Stage, race};

/// Bytes that a second of measurement sends: less than any of these transports can.
const BYTES_PER_SECOND: f64 = 400e6;
/// What the shortest block counts for, so that no transfer is of endlessly many.
const BLOCK_BYTES_MIN: usize = 16 << 10;
/// A transfer that takes longer has come to a halt.
const TRANSFER_MAX: Duration = Duration::from_secs(300);
/// Largest UDP payload on an Ethernet that quinn's defaults probe for.
const ETHERNET_MTU_BYTES: u16 = 1452;

/// What is sent: stored blocks, over and over.
pub(super) struct Traffic {
    blocks: Vec<Stored>,
    /// Blocks of a transfer.
    pub(super) count: usize,
}

impl Traffic {
    fn of(bench: &Bench<'_>) -> Result<Traffic> {
        let blocks = stored::compress(bench.sample, Compression::Optimal, bench.seconds_max())?;
        let bytes = blocks.iter().map(|block| block.bytes.len().max(BLOCK_BYTES_MIN));
        let wanted = (bench.seconds_max() * BYTES_PER_SECOND) as usize;
        let passes = wanted.div_ceil(bytes.sum::<usize>().max(1)).max(1);
        Ok(Traffic { count: blocks.len() * passes, blocks })
    }

    /// The block with this number in the transfer.
    pub(super) fn block(&self, number: usize) -> &Stored {
        &self.blocks[number % self.blocks.len()]
    }

    /// Its payload, not copied.
    pub(super) fn payload(&self, number: usize) -> Bytes {
        self.block(number).bytes.clone()
    }

    /// Bytes of a transfer.
    fn bytes(&self) -> u64 {
        (0..self.count).map(|number| self.block(number).bytes.len() as u64).sum()
    }
}

/// What an end used, from its first byte to its last.
pub(super) struct End {
    wall: Duration,
    cpu: Duration,
    /// What there is to say, such as the MTU.
    note: Option<String>,
}

/// Measures an end on its own thread.
pub(super) struct EndWatch {
    started: Instant,
    cpu: Duration,
}

impl EndWatch {
    pub(super) fn start() -> EndWatch {
        EndWatch { started: Instant::now(), cpu: cpu_time_thread() }
    }

    pub(super) fn stop(&self, note: Option<String>) -> End {
        let cpu = cpu_time_thread().saturating_sub(self.cpu);
        End { wall: self.started.elapsed(), cpu, note }
    }
}

/// What the ends tell each other outside of the link.
pub(super) struct Meeting {
    listening: mpsc::SyncSender<SocketAddr>,
    sender_done: oneshot::Receiver<()>,
}

impl Meeting {
    /// Tells the sender where to connect.
    pub(super) fn listens_at(&self, address: SocketAddr) -> Result<()> {
        self.listening.send(address).context("the sender is gone")
    }

    /// Waits for the sender's end: whoever leaves before takes the last acknowledgements along.
    pub(super) async fn sender_done(self) {
        // A sender that failed is done too.
        let _ = self.sender_done.await;
    }
}

/// Two ends that can talk to each other.
pub(super) trait Link: Sync {
    /// Listens, tells where, receives everything.
    fn receive(&self, traffic: Arc<Traffic>, meeting: Meeting)
    -> impl Future<Output = Result<End>>;
    /// Connects and sends everything.
    fn send(&self, traffic: Arc<Traffic>, to: SocketAddr) -> impl Future<Output = Result<End>>;
}

/// One transfer between two threads.
fn transfer(link: &impl Link, traffic: &Arc<Traffic>) -> Result<(Cost, Option<String>)> {
    let (address, listening) = mpsc::sync_channel(1);
    let (done, sender_done) = oneshot::channel();
    let meeting = Meeting { listening: address, sender_done };
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let runtime = end_runtime(1)?;
            let work = link.receive(traffic.clone(), meeting);
            runtime.block_on(async { tokio::time::timeout(TRANSFER_MAX, work).await })?
        });
        let sender = scope.spawn(move || {
            let to = listening.recv().context("the receiver does not listen")?;
            let runtime = end_runtime(0)?;
            let work = link.send(traffic.clone(), to);
            let end = runtime.block_on(async { tokio::time::timeout(TRANSFER_MAX, work).await })?;
            drop(done);
            end
        });
        let join = |end: std::thread::ScopedJoinHandle<'_, Result<End>>| {
            end.join().unwrap_or_else(|_| Err(anyhow!("an end of the transfer panicked")))
        };
        (join(sender), join(receiver))
    });
    // If the receiver failed, its word explains the sender's.
    let (sent, received) = match (sent, received) {
        (Ok(sent), Ok(received)) => (sent, received),
        (Err(sender), Err(receiver)) => {
            return Err(receiver.context(format!("sender: {sender:#}; receiver")));
        }
        (Err(error), _) => return Err(error.context("sender")),
        (_, Err(error)) => return Err(error.context("receiver")),
    };
    let cost = Cost {
        bytes: traffic.bytes(),
        wall_seconds: sent.wall.as_secs_f64(),
        cpu_seconds: Some((sent.cpu + received.cpu).as_secs_f64()),
        cpu_seconds_sender: Some(sent.cpu.as_secs_f64()),
    };
    Ok((cost, sent.note.or(received.note)))
}

/// A runtime of the calling thread, which gets the core of this number if there are several.
fn end_runtime(number: usize) -> Result<Runtime> {
    let cores = available_cores();
    if cores.len() > 1 {
        pin_current_thread(cores[number % cores.len()])?;
    }
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// QUIC with the packets of an Ethernet.
pub(super) fn quic_1452(bench: &mut Bench<'_>) -> Result<Stage> {
    let options = Options { mtu_bytes_max: ETHERNET_MTU_BYTES, ..Options::default() };
    quic_with(bench, "quic 1452", options)
}

/// QUIC as it finds its path.
pub(super) fn quic(bench: &mut Bench<'_>) -> Result<Stage> {
    quic_with(bench, "quic", Options::default())
}

fn quic_with(bench: &Bench<'_>, name: &str, options: Options) -> Result<Stage> {
    let traffic = Arc::new(Traffic::of(bench)?);
    let ours =
        gantry_link::GantryLink::new(Options { kind: TransportKind::Quic, ..options.clone() })?;
    let bare = bare_quinn::BareQuinn::new(options)?;
    let contenders = vec![
        Contender::noting("transport, QUIC", || transfer(&ours, &traffic)),
        Contender::noting("bare quinn", || transfer(&bare, &traffic)),
    ];
    race(name, Some(STAGE_BAR), bench.runs(), contenders)
}

/// TLS over TCP.
pub(super) fn tcp(bench: &mut Bench<'_>) -> Result<Stage> {
    let traffic = Arc::new(Traffic::of(bench)?);
    let options = Options { kind: TransportKind::Tcp, ..Options::default() };
    let ours = gantry_link::GantryLink::new(options)?;
    let bare = bare_tls::BareTls::new()?;
    let contenders = vec![
        Contender::noting("transport, TCP", || transfer(&ours, &traffic)),
        Contender::noting("bare tokio-rustls", || transfer(&bare, &traffic)),
    ];
    race("tcp", Some(STAGE_BAR), bench.runs(), contenders)
}
