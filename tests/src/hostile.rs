//! Peers that do not behave: valid identities that say wrong things, and strangers.
//!
//! In: a server's address. Out: connections over the product's own transport, on which a scenario
//! sends what it likes.

use std::path::Path;
use std::time::Duration;

use gantry_common::ids::SessionId;
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{
    BaseChoice, DiskOffer, Intent, PROTOCOL, SessionOffer, ToSource, ToTarget,
};
use gantry_dataplane::transport::{
    self, Connection, Identity, Options, OutFrame, TransportError, TransportKind, Trust,
};

use crate::site::{Party, Server};

/// Runs a conversation to its end.
pub fn talk<T>(conversation: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), conversation).await };
    runtime.expect("a runtime").block_on(limited).expect("a conversation ends within a minute")
}

/// Connects to a server with a party's identity.
///
/// # Errors
/// Refused or unreachable.
pub async fn connect(
    server: &Server,
    party: &Party,
    kind: TransportKind,
) -> Result<Connection, TransportError> {
    let load = |path: &Path| Identity::load(path).expect("an identity");
    let trust = Trust::load(&party.trust).expect("a trust file");
    let options = Options { kind, ..Options::default() };
    let address = server.address.to_string();
    transport::connect(&address, &load(&party.identity), &trust, &options).await
}

/// A `Hello` for a backup of one disk.
pub fn hello(session: u8, name: &str, disk_bytes: u64) -> ToTarget {
    let disk = DiskOffer {
        identity: "hostile".into(),
        label: "hostile".into(),
        size_bytes: disk_bytes,
        block_size: BlockSize::M1,
        snapshot: "s".into(),
        read_digest: [0; 32],
        base: BaseChoice::None,
        change_id: None,
    };
    let offer = SessionOffer {
        name: name.into(),
        disks: vec![disk],
        compression: Compression::Optimal,
        created_ms: 0,
        vm_config: Vec::new(),
        retention: None,
    };
    ToTarget::Hello {
        protocol: PROTOCOL,
        software: "hostile".into(),
        session: SessionId([session; 16]),
        intent: Intent::Backup(offer),
        ticket: None,
    }
}

/// Sends a message on the control stream.
pub async fn say(connection: &Connection, message: &ToTarget) {
    // An error means that the server has closed already, which the caller sees when listening.
    let _ = connection.sender.send_control(OutFrame::message(message)).await;
}

/// Sends bytes as they are on the control stream.
pub async fn say_bytes(connection: &Connection, bytes: Vec<u8>) {
    let frame = OutFrame { head: bytes.into(), payload: Default::default() };
    let _ = connection.sender.send_control(frame).await;
}

/// Listens until the server ends the connection; gives every message that it could read, and the
/// error it ended with.
pub async fn listen(connection: &mut Connection) -> (Vec<ToSource>, Option<TransportError>) {
    let mut heard = Vec::new();
    loop {
        match connection.receiver.recv().await {
            Ok(Some(frame)) => heard.extend(frame.decode::<ToSource>()),
            Ok(None) => return (heard, None),
            Err(error) => return (heard, Some(error)),
        }
    }
}
