//! QUIC: one connection a session, a control stream both ways, up to four lanes one way.
//!
//! In: frames. Out: frames of the peer. The client opens the control stream and greets first; the
//! server answers. Since TLS 1.3 lets a client finish before the server has judged its
//! certificate, a connection counts as made only when the greeting has come back. Lanes are
//! unidirectional streams of whoever sends blocks, numbered as they are opened.
//!
//! Traps that the settings step around (DATAPLANE §3): segmentation of jumbo packets (see `udp`),
//! an initial MTU above the initial window stalls for ever, a receive window beyond the socket's
//! buffer loses packets.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};

use gantry_common::limits;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionError, Endpoint, IdleTimeout, MtuDiscoveryConfig, RecvStream,
    SendStream, ServerConfig, TokioRuntime, TransportConfig, WriteError,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::error::{CloseReason, Ends, TransportError};
use super::frame_io::{Assembler, Channel, PoolSlot};
use super::identity::Identity;
use super::link::{
    CONTROL_QUEUE_FRAMES, Connection, Delivery, FINISH_MAX, FrameReceiver, FrameSender, Inlet,
    LANE_QUEUE_FRAMES, LaneStream, Link, LinkStats, PeerInfo, StreamInlet,
};
use super::options::{Options, TransportKind};
use super::reset::endpoint_config;
use super::tls;
use super::trust::Trust;
use super::udp::JumboSocket;
use crate::payload::PayloadPool;

/// First bytes of the control stream, each way: they prove that the other side let us in.
pub(super) const GREETING: [u8; 8] = *b"GANTRY\0\x01";

/// QUIC version 1 header, packet number, AEAD tag and STREAM frame of a full packet, in bytes.
const PACKET_OVERHEAD_BYTES: usize = 36;
/// The search for the path's MTU ends when it is known this closely. The steps halve the range up
/// to jumbo frames, so a coarse end would miss the 1472 bytes of an ordinary Ethernet and stay at
/// 1200: measured at 1.2 times the CPU of a path that was found.
const MTU_STEP_BYTES_MIN: u16 = 20;

fn transport_config(options: &Options) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(options.mtu_bytes_max).minimum_change(MTU_STEP_BYTES_MIN);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(1u8.into())
        .max_concurrent_uni_streams((limits::LANES_MAX as u8).into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(options.lane_window_bytes.into())
        .receive_window(options.receive_window_bytes.into())
        .send_window(options.send_window_bytes)
        .mtu_discovery_config(Some(mtu))
        .keep_alive_interval(Some(options.keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(options.idle).ok())
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    config
}

/// An endpoint on this socket; with `server`, it accepts connections.
pub(super) fn endpoint(
    socket: UdpSocket,
    identity: &Identity,
    server: Option<ServerConfig>,
    options: &Options,
) -> Result<Endpoint, TransportError> {
    let setup = |what: &str, error: &dyn std::fmt::Display| {
        TransportError::setup(format!("cannot set up {what}: {error}"))
    };
    let mut config = endpoint_config(identity);
    config
        .max_udp_payload_size(options.mtu_bytes_max.max(1472))
        .map_err(|error| setup("QUIC", &error))?;
    let largest = options.mtu_bytes_max.max(1472);
    let socket = JumboSocket::new(socket, options.socket_buffer_bytes, largest)
        .map_err(|error| setup("a UDP socket", &error))?;
    Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), Arc::new(TokioRuntime))
        .map_err(|error| setup("a QUIC endpoint", &error))
}

/// What a listening endpoint needs.
pub(super) fn server_config(
    identity: &Identity,
    trust: &Trust,
    alpn: &[u8],
    options: &Options,
) -> Result<ServerConfig, TransportError> {
    let tls = tls::server_config(identity, trust, alpn)
        .map_err(|error| TransportError::setup(format!("cannot set up TLS: {error}")))?;
    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|error| TransportError::setup(format!("cannot set up QUIC: {error}")))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(options)));
    // A session keeps to one pair of addresses; a move would be a way around a firewall's rule.
    config.migration(false);
    Ok(config)
}

/// A connection whose two ends have let each other in, with its first stream.
pub(super) struct Greeted {
    /// A client's own.
    pub(super) endpoint: Option<Endpoint>,
    pub(super) quic: quinn::Connection,
    pub(super) ends: Ends,
    pub(super) send: SendStream,
    pub(super) receive: RecvStream,
}

impl Greeted {
    pub(super) fn peer(&self) -> Result<PeerInfo, TransportError> {
        let address = self.ends.address.clone();
        let certificates = self.quic.peer_identity().and_then(|any| any.downcast().ok());
        let pin = certificates
            .and_then(|chain: Box<Vec<CertificateDer<'static>>>| tls::pin_of(chain.first()?))
            .ok_or_else(|| TransportError::refused(format!("{address} has no certificate")))?;
        Ok(PeerInfo { pin, address })
    }
}

/// Connects to a listening mover.
pub(super) async fn connect(
    address: SocketAddr,
    identity: &Identity,
    trust: &Trust,
    alpn: &[u8],
    options: &Options,
) -> Result<Connection, TransportError> {
    connection(dial(address, identity, trust, alpn, options).await?)
}

/// Connects and greets.
pub(super) async fn dial(
    address: SocketAddr,
    identity: &Identity,
    trust: &Trust,
    alpn: &[u8],
    options: &Options,
) -> Result<Greeted, TransportError> {
    let ends = Ends { address: address.to_string(), own_pin: identity.pin() };
    let setup = |error: &dyn std::fmt::Display| {
        TransportError::setup(format!("cannot set up QUIC: {error}"))
    };
    let any: SocketAddr = match address {
        // A peer of this host is reached without a socket that others could reach.
        _ if address.ip().is_loopback() => (address.ip(), 0).into(),
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(|error| setup(&error))?;
    let endpoint = endpoint(socket, identity, None, options)?;
    let tls = tls::client_config(identity, trust, alpn).map_err(|error| setup(&error))?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| setup(&error))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(options)));
    let connecting =
        endpoint.connect_with(config, address, "gantry").map_err(|error| setup(&error))?;
    let refused = |error: &ConnectionError| ends.quic(error).unwrap_or_else(|| ends.lost(error));
    let quic = connecting.await.map_err(|error| refused(&error))?;
    let (mut send, mut receive) = quic.open_bi().await.map_err(|error| refused(&error))?;
    greet(&quic, &ends, &mut send, &mut receive, true).await?;
    Ok(Greeted { endpoint: Some(endpoint), quic, ends, send, receive })
}

/// Makes a connection of what a client began.
pub(super) async fn accept(
    incoming: quinn::Incoming,
    identity: Identity,
) -> Result<Connection, TransportError> {
    connection(answer(incoming, &identity).await?)
}

/// Answers a client's greeting.
pub(super) async fn answer(
    incoming: quinn::Incoming,
    identity: &Identity,
) -> Result<Greeted, TransportError> {
    let address = incoming.remote_address().to_string();
    let ends = Ends { address, own_pin: identity.pin() };
    let refused = |error: &ConnectionError| ends.quic(error).unwrap_or_else(|| ends.lost(error));
    let quic = incoming.await.map_err(|error| refused(&error))?;
    let (mut send, mut receive) = quic.accept_bi().await.map_err(|error| refused(&error))?;
    greet(&quic, &ends, &mut send, &mut receive, false).await?;
    Ok(Greeted { endpoint: None, quic, ends, send, receive })
}

async fn greet(
    quic: &quinn::Connection,
    ends: &Ends,
    send: &mut SendStream,
    receive: &mut RecvStream,
    first: bool,
) -> Result<(), TransportError> {
    let failed = |error: &dyn std::fmt::Display| {
        let reason = quic.close_reason();
        reason.and_then(|reason| ends.quic(&reason)).unwrap_or_else(|| ends.lost(error))
    };
    // Before lanes, so that credits and answers never wait behind blocks.
    send.set_priority(1).map_err(|error| failed(&error))?;
    if first {
        send.write_all(&GREETING).await.map_err(|error| failed(&error))?;
    }
    let mut theirs = [0; GREETING.len()];
    receive.read_exact(&mut theirs).await.map_err(|error| failed(&error))?;
    if theirs != GREETING {
        return Err(TransportError::refused(format!("{} is no Gantry mover", ends.address)));
    }
    if !first {
        send.write_all(&GREETING).await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn connection(greeted: Greeted) -> Result<Connection, TransportError> {
    let peer = greeted.peer()?;
    let Greeted { endpoint, quic, ends, send, receive } = greeted;
    let inlet = inlet(quic.clone(), ends.clone(), receive);
    let link = Link::Quic(QuicLink { quic, endpoint });
    Ok(Connection {
        peer,
        kind: TransportKind::Quic,
        note: None,
        sender: FrameSender::new(link, ends, LaneStream::Quic(send)),
        receiver: FrameReceiver::new(Inlet::Streams(inlet)),
    })
}

/// Starts the control stream's reader; lanes wait for admission.
fn inlet(quic: quinn::Connection, ends: Ends, receive: RecvStream) -> StreamInlet {
    let (control_in, control) = mpsc::channel(CONTROL_QUEUE_FRAMES);
    let (lanes_in, lanes) = mpsc::channel(LANE_QUEUE_FRAMES);
    let (ending, ended) = watch::channel(());
    let verdict = Arc::default();
    let reader = Reader { quic, ends, verdict, deliver: control_in };
    let lane_reader = Reader { deliver: lanes_in, ..reader.clone() };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        reader.read(receive, Channel::Control, PoolSlot::default()).await;
        drop(ending);
    });
    let admission = move |pool: PayloadPool, tasks: &mut JoinSet<()>| {
        tasks.spawn(lane_reader.read_lanes(pool, ended));
    };
    StreamInlet { control, lanes, tasks, admission: Some(Box::new(admission)) }
}

/// Puts frames of one connection's streams together.
#[derive(Clone)]
struct Reader {
    quic: quinn::Connection,
    ends: Ends,
    /// Why this side closed the connection, if a frame was the cause.
    verdict: Arc<OnceLock<TransportError>>,
    deliver: mpsc::Sender<Delivery>,
}

impl Reader {
    /// Reads every lane that the peer opens, until the control stream has ended and every lane
    /// with it.
    async fn read_lanes(self, pool: PayloadPool, mut control_ended: watch::Receiver<()>) {
        let slot = PoolSlot::from(OnceLock::from(pool));
        let mut lanes = JoinSet::new();
        loop {
            tokio::select! {
                // A lane that came before the control stream's end is read.
                biased;
                lane = self.quic.accept_uni() => match lane {
                    Ok(lane) => {
                        let channel = Channel::Lane(lane.id().index() as u8);
                        lanes.spawn(self.clone().read(lane, channel, slot.clone()));
                    }
                    Err(error) => {
                        self.report(&error).await;
                        break;
                    }
                },
                _ = control_ended.changed() => break,
            }
        }
        while lanes.join_next().await.is_some() {}
    }

    async fn report(&self, error: &ConnectionError) {
        let told = match error {
            ConnectionError::LocallyClosed => self.verdict.get().cloned(),
            _ => None,
        };
        if let Some(error) = told.or_else(|| self.ends.quic(error)) {
            // A receiver that is gone asks for nothing.
            let _ = self.deliver.send(Err(error)).await;
        }
    }

    async fn read(self, mut stream: RecvStream, channel: Channel, pool: PoolSlot) {
        let mut assembler = Assembler::new(channel, pool);
        loop {
            let frame = match stream.read(assembler.spare()).await {
                Ok(Some(count)) => assembler.advance(count),
                Ok(None) if assembler.is_between_frames() => return,
                Ok(None) => Err(gantry_common::wire::FrameError::Rule("end within a frame")),
                Err(quinn::ReadError::ConnectionLost(error)) => return self.report(&error).await,
                Err(error) => {
                    let _ = self.deliver.send(Err(self.ends.lost(error))).await;
                    return;
                }
            };
            let delivery = match frame {
                Ok(None) => continue,
                Ok(Some(frame)) => Ok(frame),
                Err(error) => {
                    let reason = CloseReason::Violation(error.to_string());
                    let verdict = self.verdict.get_or_init(|| self.ends.violation(error));
                    self.quic.close(reason.code().into(), reason.text().as_bytes());
                    Err(verdict.clone())
                }
            };
            let last = delivery.is_err();
            if self.deliver.send(delivery).await.is_err() || last {
                return;
            }
        }
    }
}

fn gone(ends: &Ends, error: &ConnectionError) -> TransportError {
    ends.quic(error).unwrap_or_else(|| ends.lost("the peer is done"))
}

/// What a failed write means.
pub(super) fn write_error(ends: &Ends, error: &WriteError) -> TransportError {
    match error {
        WriteError::ConnectionLost(error) => gone(ends, error),
        other => ends.lost(other),
    }
}

/// The connection below a [`FrameSender`].
#[derive(Debug)]
pub(super) struct QuicLink {
    quic: quinn::Connection,
    /// A client's own, so that the end is on the wire before the program may exit.
    endpoint: Option<Endpoint>,
}

impl QuicLink {
    pub(super) async fn open_lane(&self, ends: &Ends) -> Result<SendStream, TransportError> {
        self.quic.open_uni().await.map_err(|error| gone(ends, &error))
    }

    /// Bytes on the wire for a slice of a lane, with the headers of QUIC, UDP and IP.
    pub(super) fn wire_bytes(&self, bytes: usize) -> usize {
        let mtu = usize::from(self.quic.stats().path.current_mtu);
        let packets = bytes.div_ceil(mtu.saturating_sub(PACKET_OVERHEAD_BYTES).max(1));
        bytes + packets * (PACKET_OVERHEAD_BYTES + self.ip_overhead_bytes())
    }

    fn ip_overhead_bytes(&self) -> usize {
        if self.quic.remote_address().is_ipv4() { 20 + 8 } else { 40 + 8 }
    }

    pub(super) async fn finish(
        &self,
        ends: &Ends,
        streams: Vec<LaneStream>,
    ) -> Result<(), TransportError> {
        let deliver = async {
            for stream in streams {
                let LaneStream::Quic(mut stream) = stream else { continue };
                // Closed by an earlier finish: nothing to deliver.
                let _ = stream.finish();
                stream.stopped().await.map_err(|error| ends.lost(error))?;
            }
            Ok(())
        };
        let delivered = tokio::time::timeout(FINISH_MAX, deliver).await;
        self.close(&CloseReason::Done);
        if let Some(endpoint) = &self.endpoint {
            // The peer has everything; only its knowledge of the end hangs on this.
            let _ = tokio::time::timeout(FINISH_MAX / 10, endpoint.wait_idle()).await;
        }
        delivered.unwrap_or_else(|_| Err(ends.lost("the peer did not take the last frames")))
    }

    pub(super) fn close(&self, reason: &CloseReason) {
        self.quic.close(reason.code().into(), reason.text().as_bytes());
    }

    pub(super) fn stats(&self) -> LinkStats {
        let stats = self.quic.stats();
        LinkStats {
            mtu_bytes: stats.path.current_mtu,
            rtt_us: stats.path.rtt.as_micros() as u64,
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            packets_received: Some(stats.udp_rx.datagrams),
            wire_bytes_sent: stats.udp_tx.bytes
                + stats.udp_tx.datagrams * self.ip_overhead_bytes() as u64,
            black_holes: stats.path.black_holes_detected,
        }
    }
}
