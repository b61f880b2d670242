//! The reference for TLS over TCP: tokio-rustls, one connection, writes and reads.
//!
//! In: payloads. Out: what both ends used. None of Gantry's code.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, ensure};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::bare_certificates::{Certificates, NAME};
use super::network::{End, EndWatch, Link, Meeting, Traffic};

/// Bytes of the receiver's buffer.
const BUFFER_BYTES: usize = 256 << 10;

/// Both sides' settings.
pub(super) struct BareTls {
    certificates: Certificates,
}

impl BareTls {
    pub(super) fn new() -> Result<BareTls> {
        Ok(BareTls { certificates: Certificates::new()? })
    }
}

impl Link for BareTls {
    async fn receive(&self, traffic: Arc<Traffic>, meeting: Meeting) -> Result<End> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        meeting.listens_at(listener.local_addr()?)?;
        let (tcp, _) = listener.accept().await?;
        let acceptor = TlsAcceptor::from(Arc::new(self.certificates.server.clone()));
        let mut stream = acceptor.accept(tcp).await?;
        let wanted: usize = (0..traffic.count).map(|number| traffic.payload(number).len()).sum();
        let mut buffer = vec![0; BUFFER_BYTES];
        let watch = EndWatch::start();
        let mut bytes = 0;
        while bytes < wanted {
            let count = stream.read(&mut buffer).await?;
            ensure!(count > 0, "{bytes} of {wanted} bytes came");
            bytes += count;
        }
        let end = watch.stop(None);
        stream.write_all(b"!").await?;
        stream.flush().await?;
        meeting.sender_done().await;
        Ok(end)
    }

    async fn send(&self, traffic: Arc<Traffic>, to: SocketAddr) -> Result<End> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(self.certificates.client.clone()));
        let mut stream = connector.connect(ServerName::try_from(NAME)?, tcp).await?;
        let watch = EndWatch::start();
        for number in 0..traffic.count {
            stream.write_all(&traffic.payload(number)).await?;
        }
        stream.flush().await?;
        // The receiver says when it has everything.
        stream.read_u8().await?;
        Ok(watch.stop(None))
    }
}
