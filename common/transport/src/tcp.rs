//! TLS 1.3 over one TCP connection: for networks that block UDP.
//!
//! In and out: frames. The streams of a connection share the one of TCP in segments of
//! `channel: u8`, `length: u32 LE`, bytes: channel 0 is control, 1.. are the lanes, and each is a
//! stream of frames as over QUIC, so that a long block does not hold up control. Two channels more:
//! a sign of life (empty), and the goodbye (code, text), without which an end is a loss.
//!
//! One task writes and one reads, so that two peers that both send never wait for each other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use gantry_common::limits;
use gantry_common::wire::{self, FrameError};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::error::{CloseReason, Ends, TransportError};
use super::frame_io::{Assembler, Channel, PoolSlot};
use super::identity::Identity;
use super::link::{
    CONTROL_QUEUE_FRAMES, Connection, Delivery, FrameReceiver, FrameSender, Inlet,
    LANE_QUEUE_FRAMES, LaneStream, Link, PeerInfo, StreamInlet,
};
use super::options::{Options, TransportKind};
use super::queue::{Closing, Ended, Next, Outlet, Source, close, queues};
use super::quic::GREETING;
use super::tls;
use super::trust::Trust;
use crate::payload::PayloadPool;

const GOODBYE: u8 = 255;
const ALIVE: u8 = 254;
const SEGMENT_HEAD_BYTES: usize = 5;

/// TLS record header, type and tag, for each record of 16 KiB.
const RECORD_OVERHEAD_BYTES: usize = 22;
const RECORD_BYTES: usize = 16 << 10;
/// IPv4 and TCP headers with timestamps, for each packet of an Ethernet.
const PACKET_OVERHEAD_BYTES: usize = 52;
const PACKET_BYTES: usize = 1448;

/// rustls reads 4 KiB at a time; the buffer makes one system call of many reads.
type Socket = BufReader<TcpStream>;
const SOCKET_READ_BYTES: usize = 256 << 10;

/// Some bytes of one channel.
#[derive(Debug)]
pub(super) struct Segment {
    channel: u8,
    parts: [Bytes; 2],
}

/// What accepts TLS on a listening socket.
pub(super) fn acceptor(identity: &Identity, trust: &Trust) -> Result<TlsAcceptor, TransportError> {
    let config = tls::server_config(identity, trust, wire::ALPN)
        .map_err(|error| TransportError::setup(format!("cannot set up TLS: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connects to a listening mover.
pub(super) async fn connect(
    address: SocketAddr,
    identity: &Identity,
    trust: &Trust,
    alpn: &[u8],
    options: &Options,
) -> Result<Connection, TransportError> {
    let ends = Ends { address: address.to_string(), own_pin: identity.pin() };
    let config = tls::client_config(identity, trust, alpn)
        .map_err(|error| TransportError::setup(format!("cannot set up TLS: {error}")))?;
    let unreachable = |error: io::Error| TransportError::Unreachable {
        address: address.to_string(),
        cause: error.to_string(),
    };
    let tcp = TcpStream::connect(address).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(|error| ends.lost(error))?;
    let name = ServerName::IpAddress(address.ip().into());
    let connector = TlsConnector::from(Arc::new(config));
    let tls = connector.connect(name, buffered(tcp)).await.map_err(|error| ends.tls(&error))?;
    let mut stream = TlsStream::Client(tls);
    write_greeting(&mut stream, &ends).await?;
    read_greeting(&mut stream, &ends).await?;
    connection(stream, ends, options)
}

/// Makes a connection of what a client began.
pub(super) async fn accept(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: &TlsAcceptor,
    identity: &Identity,
    options: &Options,
) -> Result<Connection, TransportError> {
    let ends = Ends { address: address.to_string(), own_pin: identity.pin() };
    tcp.set_nodelay(true).map_err(|error| ends.lost(error))?;
    let tls = acceptor.accept(buffered(tcp)).await.map_err(|error| ends.tls(&error))?;
    let mut stream = TlsStream::Server(tls);
    read_greeting(&mut stream, &ends).await?;
    write_greeting(&mut stream, &ends).await?;
    connection(stream, ends, options)
}

fn buffered(tcp: TcpStream) -> Socket {
    BufReader::with_capacity(SOCKET_READ_BYTES, tcp)
}

async fn write_greeting(stream: &mut TlsStream<Socket>, ends: &Ends) -> Result<(), TransportError> {
    stream.write_all(&GREETING).await.map_err(|error| ends.tls(&error))?;
    stream.flush().await.map_err(|error| ends.tls(&error))
}

async fn read_greeting(stream: &mut TlsStream<Socket>, ends: &Ends) -> Result<(), TransportError> {
    let mut theirs = [0; GREETING.len()];
    stream.read_exact(&mut theirs).await.map_err(|error| ends.tls(&error))?;
    let alpn = stream.get_ref().1.alpn_protocol();
    if theirs != GREETING || alpn != Some(wire::ALPN) {
        return Err(TransportError::refused(format!("{} is no Gantry mover", ends.address)));
    }
    Ok(())
}

fn connection(
    stream: TlsStream<Socket>,
    ends: Ends,
    options: &Options,
) -> Result<Connection, TransportError> {
    let chain: Option<&[CertificateDer<'_>]> = stream.get_ref().1.peer_certificates();
    let pin = chain
        .and_then(|chain| tls::pin_of(chain.first()?))
        .ok_or_else(|| TransportError::refused(format!("{} has no certificate", ends.address)))?;
    let (read, write) = tokio::io::split(stream);
    let (ended_in, ended) = watch::channel(None);
    let (outlet, source) = queues(ended);
    let ended_in = Arc::new(ended_in);
    let writer = Writer { stream: write, ends: ends.clone(), ended: ended_in.clone() };
    // Ends by itself when every sender is gone, after the goodbye.
    tokio::spawn(writer.run(source, options.keep_alive));

    let (control_in, control) = mpsc::channel(CONTROL_QUEUE_FRAMES);
    let (lanes_in, lanes) = mpsc::channel(LANE_QUEUE_FRAMES);
    let pool = PoolSlot::default();
    let reader = Reader {
        stream: read,
        ends: ends.clone(),
        idle: options.idle,
        pool: pool.clone(),
        control: control_in,
        lanes: lanes_in,
        ended: ended_in,
        closing: outlet.closing(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(reader.run());
    let admission = move |admitted: PayloadPool, _: &mut JoinSet<()>| drop(pool.set(admitted));
    let inlet = StreamInlet { control, lanes, tasks, admission: Some(Box::new(admission)) };
    let control = LaneStream::Tcp(Channel::Control, outlet.clone());
    Ok(Connection {
        peer: PeerInfo { pin, address: ends.address.clone() },
        kind: TransportKind::Tcp,
        note: None,
        sender: FrameSender::new(Link::Tcp(outlet), ends, control),
        receiver: FrameReceiver::new(Inlet::Streams(inlet)),
    })
}

/// Queues a slice of a frame, cut so that control need not wait long.
pub(super) async fn send(
    outlet: &Outlet<Segment>,
    channel: Channel,
    [mut head, mut rest]: [Bytes; 2],
    ends: &Ends,
) -> Result<(), TransportError> {
    let number = match channel {
        Channel::Control => 0,
        Channel::Lane(lane) => lane + 1,
    };
    while !head.is_empty() || !rest.is_empty() {
        let slice = rest.split_to(rest.len().min(limits::PACE_SLICE_BYTES_MAX));
        let segment = Segment { channel: number, parts: [std::mem::take(&mut head), slice] };
        outlet.send(channel, segment, ends).await?;
    }
    Ok(())
}

/// Bytes on the wire for a slice of a lane, with the headers of TLS, TCP and IP on an Ethernet.
pub(super) fn wire_bytes(bytes: usize) -> usize {
    let bytes = bytes + SEGMENT_HEAD_BYTES;
    let sealed = bytes + bytes.div_ceil(RECORD_BYTES) * RECORD_OVERHEAD_BYTES;
    sealed + sealed.div_ceil(PACKET_BYTES) * PACKET_OVERHEAD_BYTES
}

/// Notes how the connection ended; the first word stays.
fn end(ended: &watch::Sender<Ended>, how: Result<(), TransportError>) {
    ended.send_if_modified(|ended| {
        let first = ended.is_none();
        ended.get_or_insert(how);
        first
    });
}

struct Writer {
    stream: WriteHalf<TlsStream<Socket>>,
    ends: Ends,
    ended: Arc<watch::Sender<Ended>>,
}

impl Writer {
    async fn run(mut self, mut source: Source<Segment>, keep_alive: Duration) {
        let mut ended = self.ended.subscribe();
        let mut closing = source.closing();
        let written = tokio::select! {
            biased;
            // The peer is gone: whatever waits is for nobody.
            _ = ended.wait_for(|ended| matches!(ended, Some(Err(_)))) => Ok(()),
            // This side closed, and the peer does not read the goodbye.
            () = async {
                let _ = closing.wait_for(Option::is_some).await;
                tokio::time::sleep(keep_alive).await;
            } => Ok(()),
            written = self.write(&mut source, keep_alive) => written,
        };
        if let Err(error) = written {
            end(&self.ended, Err(self.ends.tls(&error)));
        }
        // Nothing can be done about a shutdown that fails: the connection is over.
        let _ = timeout(keep_alive, self.stream.shutdown()).await;
    }

    async fn write(
        &mut self,
        source: &mut Source<Segment>,
        keep_alive: Duration,
    ) -> io::Result<()> {
        loop {
            match timeout(keep_alive, source.next(true)).await {
                Err(_) => self.segment(ALIVE, [Bytes::new(), Bytes::new()]).await?,
                Ok(Next::Item(Segment { channel, parts })) => self.segment(channel, parts).await?,
                Ok(Next::End) => return self.goodbye(&CloseReason::Done).await,
                Ok(Next::Closed(Some(reason))) => return self.goodbye(&reason).await,
                // Dropped, not ended: the peer is to see a loss.
                Ok(Next::Closed(None)) => return Ok(()),
            }
        }
    }

    async fn goodbye(&mut self, reason: &CloseReason) -> io::Result<()> {
        let code = Bytes::copy_from_slice(&[reason.code()]);
        let text = Bytes::copy_from_slice(reason.text().as_bytes());
        self.segment(GOODBYE, [code, text]).await
    }

    async fn segment(&mut self, channel: u8, [head, rest]: [Bytes; 2]) -> io::Result<()> {
        let mut prefix = [channel; SEGMENT_HEAD_BYTES];
        prefix[1..].copy_from_slice(&((head.len() + rest.len()) as u32).to_le_bytes());
        let mut segment = Buf::chain(&prefix[..], head).chain(rest);
        self.stream.write_all_buf(&mut segment).await?;
        self.stream.flush().await
    }
}

struct Reader {
    stream: ReadHalf<TlsStream<Socket>>,
    ends: Ends,
    idle: Duration,
    pool: PoolSlot,
    control: mpsc::Sender<Delivery>,
    lanes: mpsc::Sender<Delivery>,
    ended: Arc<watch::Sender<Ended>>,
    closing: Arc<watch::Sender<Closing>>,
}

impl Reader {
    async fn run(mut self) {
        let Some(end) = self.read().await else { return };
        match &end {
            // The writer lives on for as long as it takes to tell the peer.
            Err(TransportError::Violation { error, .. }) => {
                close(&self.closing, CloseReason::Violation(error.to_string()));
            }
            _ => self::end(&self.ended, end.clone()),
        }
        if let Err(error) = end {
            // A receiver that is gone asks for nothing.
            let _ = self.control.send(Err(error)).await;
        }
    }

    /// Reads until the connection ends, and tells how; nothing if nobody wants to know.
    async fn read(&mut self) -> Option<Result<(), TransportError>> {
        let mut streams = [Channel::Control; limits::LANES_MAX + 1];
        for (lane, channel) in streams.iter_mut().skip(1).enumerate() {
            *channel = Channel::Lane(lane as u8);
        }
        let mut streams = streams.map(|channel| Assembler::new(channel, self.pool.clone()));
        loop {
            let mut prefix = [0; SEGMENT_HEAD_BYTES];
            if let Err(error) = self.fill(&mut prefix).await {
                return Some(Err(error));
            }
            let [channel, length @ ..] = prefix;
            let length = u32::from_le_bytes(length) as usize;
            let read = match (channel, streams.get_mut(usize::from(channel))) {
                (GOODBYE, _) => return Some(self.goodbye(length).await),
                (ALIVE, _) if length == 0 => continue,
                (_, Some(stream)) => self.segment(stream, length).await,
                _ => Err(self.ends.violation(FrameError::Rule("segment of no channel"))),
            };
            match read {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Reads a segment; false once the receiver is gone.
    async fn segment(
        &mut self,
        stream: &mut Assembler,
        mut length: usize,
    ) -> Result<bool, TransportError> {
        while length > 0 {
            let spare = stream.spare();
            let space = spare.len().min(length);
            let count = self.some(&mut spare[..space]).await?;
            length -= count;
            let frame = stream.advance(count).map_err(|error| self.ends.violation(error))?;
            if let Some(frame) = frame {
                let queue =
                    if frame.channel == Channel::Control { &self.control } else { &self.lanes };
                if queue.send(Ok(frame)).await.is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn goodbye(&mut self, length: usize) -> Result<(), TransportError> {
        if !(1..=limits::TEXT_BYTES_MAX + 1).contains(&length) {
            return Err(self.ends.violation(FrameError::Rule("length of a goodbye")));
        }
        let mut body = vec![0; length];
        self.fill(&mut body).await?;
        self.ends.closed_by_peer(body[0].into(), &body[1..]).map_or(Ok(()), Err)
    }

    async fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), TransportError> {
        while !buffer.is_empty() {
            let count = self.some(buffer).await?;
            buffer = &mut buffer[count..];
        }
        Ok(())
    }

    /// Reads at least one byte, unless the peer shows no sign of life.
    async fn some(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        match timeout(self.idle, self.stream.read(buffer)).await {
            Ok(Ok(0)) => Err(self.ends.lost("the peer dropped it")),
            Ok(Ok(count)) => Ok(count),
            Ok(Err(error)) => Err(self.ends.tls(&error)),
            Err(_) => Err(self.ends.lost("no sign of life")),
        }
    }
}
