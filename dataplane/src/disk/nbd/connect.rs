//! Opens a connection to an NBD server: socket, handshake, TLS.
//!
//! In: where the server is. Out: a stream in the transmission phase and what was agreed on.
//! Invariant: no byte is read beyond the handshake's, so nothing sent in the clear can pass for
//! something sent under TLS.

use std::io;
use std::time::Duration;

use gantry_common::limits;
use gantry_common::source::{NbdAddress, NbdSource};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::error::NbdError;
use super::handshake::{Agreed, Handshake, Step};
use super::tls::Tls;

/// For a connection to be made.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A connection in the transmission phase.
pub(super) struct Connected {
    pub stream: Box<dyn Stream>,
    pub agreed: Agreed,
}

/// Connects and shakes hands.
pub(super) async fn connect(source: &NbdSource, tls: Option<&Tls>) -> Result<Connected, NbdError> {
    let socket = async {
        Ok::<Box<dyn Stream>, io::Error>(match &source.address {
            NbdAddress::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            NbdAddress::Unix { path } => Box::new(UnixStream::connect(path).await?),
        })
    };
    let late = |_| NbdError::Connect(io::ErrorKind::TimedOut.into());
    let stream = timeout(CONNECT_WAIT, socket).await.map_err(late)?.map_err(NbdError::Connect)?;
    let wait = Duration::from_millis(limits::SOURCE_STALL_MS_MAX);
    let late = |_| NbdError::Stalled(wait.as_secs());
    timeout(wait, shake_hands(stream, &source.export, tls)).await.map_err(late)?
}

async fn shake_hands(
    mut stream: Box<dyn Stream>,
    export: &str,
    tls: Option<&Tls>,
) -> Result<Connected, NbdError> {
    let mut machine = Handshake::new(export, tls.is_some());
    loop {
        let mut bytes = vec![0; machine.wants()];
        stream.read_exact(&mut bytes).await.map_err(NbdError::Lost)?;
        let step = machine.take(&bytes)?;
        if step == Step::BeginTls
            && let Some(tls) = tls
        {
            let begun = tls.connector.connect(tls.name.clone(), stream).await;
            stream = Box::new(begun.map_err(|error| NbdError::Tls(error.to_string()))?);
        }
        stream.write_all(&machine.take_output()).await.map_err(NbdError::Lost)?;
        stream.flush().await.map_err(NbdError::Lost)?;
        if let Step::Done(agreed) = step {
            return Ok(Connected { stream, agreed });
        }
    }
}
