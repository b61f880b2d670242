//! The UDP socket under quinn: large buffers, and bursts that the kernel takes.
//!
//! In: datagrams of one connection in one buffer (segmentation offload, GSO). Out: the same to the
//! kernel, at most [`BURST_BYTES_MAX`] at once. quinn puts up to ten segments into a burst whatever
//! their size; with jumbo frames the kernel refuses that with EMSGSIZE, which is swallowed, so that
//! the path looks like a black hole (quinn#1457, #2189).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

/// Most bytes of one burst: what fits one IP packet, with room for headers.
const BURST_BYTES_MAX: usize = 65_000;
/// Most bytes that the kernel hands up as one burst (GRO).
const RECEIVE_BURST_BYTES_MAX: usize = 65_536;

/// A socket that never gives the kernel more than it takes.
pub(super) struct JumboSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Bytes of a segment in the last burst; 0 before the first.
    segment_bytes: AtomicUsize,
    receive_segments_max: usize,
}

impl fmt::Debug for JumboSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JumboSocket({:?})", self.inner)
    }
}

impl JumboSocket {
    /// Sets the socket's buffers and wraps it for quinn.
    pub(super) fn new(
        socket: UdpSocket,
        buffer_bytes: usize,
        mtu_bytes_max: u16,
    ) -> io::Result<JumboSocket> {
        enlarge(&socket, buffer_bytes)?;
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        let receive_segments_max = RECEIVE_BURST_BYTES_MAX.div_ceil(mtu_bytes_max.max(1200).into());
        Ok(JumboSocket { inner, segment_bytes: AtomicUsize::new(0), receive_segments_max })
    }

    fn segments_max(segment_bytes: usize) -> usize {
        (BURST_BYTES_MAX / segment_bytes.max(1)).max(1)
    }
}

/// Asks for large buffers and says so when the system gives less: a small one loses packets of our
/// own bursts (DATAPLANE §3: 0.5–2.2 %).
fn enlarge(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    let state = UdpSocketState::new(socket.into())?;
    state.set_send_buffer_size(socket.into(), bytes)?;
    state.set_recv_buffer_size(socket.into(), bytes)?;
    // Linux reports twice what it grants, for its own bookkeeping.
    let granted = |reported: usize| if cfg!(target_os = "linux") { reported / 2 } else { reported };
    let send = granted(state.send_buffer_size(socket.into())?);
    let receive = granted(state.recv_buffer_size(socket.into())?);
    if send.min(receive) < bytes {
        tracing::warn!(
            wanted = bytes,
            send,
            receive,
            "small UDP buffers lose packets: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    Ok(())
}

impl AsyncUdpSocket for JumboSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(segment) = transmit.segment_size else { return self.inner.try_send(transmit) };
        self.segment_bytes.store(segment, Ordering::Relaxed);
        // Only the first burst after the MTU grew is too long. If the socket fills up half-way,
        // quinn sends the burst again and the peer drops what it has already.
        let piece_bytes = Self::segments_max(segment) * segment;
        for contents in transmit.contents.chunks(piece_bytes) {
            let segment_size = (contents.len() > segment).then_some(segment);
            self.inner.try_send(&Transmit { contents, segment_size, ..*transmit })?;
        }
        Ok(())
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
        let inner = self.inner.max_transmit_segments();
        match self.segment_bytes.load(Ordering::Relaxed) {
            0 => inner,
            segment => inner.min(Self::segments_max(segment)),
        }
    }

    /// quinn reserves this many datagrams of the largest size for each burst that it reads, though
    /// a burst never exceeds 64 KiB.
    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments().min(self.receive_segments_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(usize, Option<usize>)>>);

    impl AsyncUdpSocket for Recorder {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unimplemented!("not polled here")
        }
        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let burst = (transmit.contents.len(), transmit.segment_size);
            self.0.lock().unwrap().push(burst);
            Ok(())
        }
        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }
        fn max_transmit_segments(&self) -> usize {
            64
        }
        fn max_receive_segments(&self) -> usize {
            64
        }
    }

    #[test]
    fn jumbo_bursts_stay_within_one_ip_packet_and_lose_nothing() {
        let recorder = Arc::new(Recorder::default());
        let socket = JumboSocket {
            inner: recorder.clone(),
            segment_bytes: AtomicUsize::new(0),
            receive_segments_max: 8,
        };
        assert_eq!(socket.max_transmit_segments(), 64);
        let contents = vec![0u8; 8972 * 9 + 100];
        let burst = |segment_size| Transmit {
            destination: ([127, 0, 0, 1], 1).into(),
            ecn: None,
            contents: &contents,
            segment_size,
            src_ip: None,
        };
        socket.try_send(&burst(Some(8972))).unwrap();
        let sent = std::mem::take(&mut *recorder.0.lock().unwrap());
        assert_eq!(sent, [(8972 * 7, Some(8972)), (8972 * 2 + 100, Some(8972))]);
        assert_eq!((socket.max_transmit_segments(), socket.max_receive_segments()), (7, 8));
        let small = Transmit { contents: &contents[..1200 * 10], ..burst(Some(1200)) };
        socket.try_send(&small).unwrap();
        assert_eq!(recorder.0.lock().unwrap().pop(), Some((12_000, Some(1200))));
        assert_eq!(socket.max_transmit_segments(), 54);
    }
}
