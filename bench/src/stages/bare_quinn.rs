//! The reference for QUIC: quinn with four unidirectional streams and nothing else.
//!
//! In: payloads, and the numbers of Gantry's transport options (MTU, windows, socket buffers).
//! Out: what both ends used. None of Gantry's code; the one addition to quinn is a bound on
//! segments in a burst, without which jumbo frames do not work at all (quinn#2189).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use gantry_dataplane::transport::Options;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{
    AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, Runtime,
    SendStream, ServerConfig, TokioRuntime, TransportConfig, UdpPoller,
};
use tokio::task::JoinSet;

use super::bare_certificates::{Certificates, NAME};
use super::network::{End, EndWatch, Link, Meeting, Traffic};

const STREAMS: usize = 4;
/// Bytes of the largest burst.
const BURST_BYTES_MAX: usize = 65_000;
/// Chunks taken from a stream at once.
const CHUNKS: usize = 32;

/// quinn's settings.
pub(super) struct BareQuinn {
    certificates: Certificates,
    options: Options,
}

impl BareQuinn {
    pub(super) fn new(options: Options) -> Result<BareQuinn> {
        Ok(BareQuinn { certificates: Certificates::new()?, options })
    }

    fn transport(&self) -> Arc<TransportConfig> {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.options.mtu_bytes_max);
        let mut config = TransportConfig::default();
        config
            .stream_receive_window(self.options.lane_window_bytes.into())
            .receive_window(self.options.receive_window_bytes.into())
            .send_window(self.options.send_window_bytes)
            .mtu_discovery_config(Some(mtu));
        Arc::new(config)
    }

    fn endpoint(&self, server: Option<ServerConfig>) -> Result<Endpoint> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let state = quinn_udp::UdpSocketState::new((&socket).into())?;
        state.set_send_buffer_size((&socket).into(), self.options.socket_buffer_bytes)?;
        state.set_recv_buffer_size((&socket).into(), self.options.socket_buffer_bytes)?;
        let mtu = self.options.mtu_bytes_max;
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(mtu.max(1472))?;
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        let socket = Capped { inner, segments_max: BURST_BYTES_MAX / usize::from(mtu) };
        let runtime = Arc::new(TokioRuntime);
        Ok(Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), runtime)?)
    }
}

impl Link for BareQuinn {
    async fn receive(&self, traffic: Arc<Traffic>, meeting: Meeting) -> Result<End> {
        let crypto = QuicServerConfig::try_from(self.certificates.server.clone())?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(self.transport());
        let endpoint = self.endpoint(Some(config))?;
        meeting.listens_at(endpoint.local_addr()?)?;
        let connection = endpoint.accept().await.context("nobody connects")?.await?;
        let watch = EndWatch::start();
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let mut stream = connection.accept_uni().await?;
            streams.spawn(async move {
                let mut chunks = vec![Bytes::new(); CHUNKS];
                let mut bytes = 0;
                while let Some(count) = stream.read_chunks(&mut chunks).await? {
                    bytes += chunks[..count].iter().map(Bytes::len).sum::<usize>();
                }
                anyhow::Ok(bytes)
            });
        }
        let mut bytes = 0;
        while let Some(stream) = streams.join_next().await {
            bytes += stream??;
        }
        let end = watch.stop(None);
        meeting.sender_done().await;
        let wanted: usize = (0..traffic.count).map(|number| traffic.payload(number).len()).sum();
        ensure!(bytes == wanted, "{bytes} of {wanted} bytes came");
        Ok(end)
    }

    async fn send(&self, traffic: Arc<Traffic>, to: SocketAddr) -> Result<End> {
        let crypto = QuicClientConfig::try_from(self.certificates.client.clone())?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport());
        let endpoint = self.endpoint(None)?;
        let connection = endpoint.connect_with(config, to, NAME)?.await?;
        let watch = EndWatch::start();
        let mut streams = JoinSet::new();
        for first in 0..STREAMS {
            streams.spawn(send_stream(connection.open_uni().await?, traffic.clone(), first));
        }
        while let Some(stream) = streams.join_next().await {
            stream??;
        }
        let path = connection.stats().path;
        let lost = 100.0 * path.lost_packets as f64 / path.sent_packets.max(1) as f64;
        let end = watch.stop(Some(format!("MTU {}, {lost:.2} % lost", path.current_mtu)));
        connection.close(0u8.into(), b"");
        endpoint.wait_idle().await;
        Ok(end)
    }
}

/// Sends every fourth payload; done when the peer has acknowledged all of them.
async fn send_stream(mut stream: SendStream, traffic: Arc<Traffic>, first: usize) -> Result<()> {
    for number in (first..traffic.count).step_by(STREAMS) {
        stream.write_all_chunks(&mut [traffic.payload(number)]).await?;
    }
    stream.finish()?;
    stream.stopped().await?;
    Ok(())
}

/// A socket that takes so many segments at once.
struct Capped {
    inner: Arc<dyn AsyncUdpSocket>,
    segments_max: usize,
}

impl fmt::Debug for Capped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capped({})", self.segments_max)
    }
}

impl AsyncUdpSocket for Capped {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments_max)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
}
