//! The link between a mover and gantryd: messages both ways, and who gets none.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_common::control::{Command, Report, TaskOutcome};
use gantry_common::failure::FailureKind;
use gantry_common::ids::TaskId;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    CertificateAuthority, CloseReason, ControlConnection, ControlListener, ControlMessage,
    Identity, TransportError, Trust, control_connect,
};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// An authority, gantryd under it, and a mover.
struct Site {
    authority: CertificateAuthority,
    trust: Trust,
    daemon: Identity,
    mover: Identity,
    listener: ControlListener,
}

impl Site {
    fn new() -> Site {
        let authority = CertificateAuthority::generate().unwrap();
        let trust = trust_in(&authority);
        let daemon = authority.issue("gantryd.example", YEAR).unwrap();
        let mover = authority.issue("proxy-1", YEAR).unwrap();
        let listener = ControlListener::bind(([127, 0, 0, 1], 0).into(), &daemon, &trust).unwrap();
        Site { authority, trust, daemon, mover, listener }
    }

    async fn connect(&self, mover: &Identity) -> Result<ControlConnection, TransportError> {
        let named = self.trust.clone().expect_name("gantryd.example").unwrap();
        control_connect(&self.listener.address().to_string(), mover, &named).await
    }

    /// The mover's end and gantryd's.
    async fn ends(&mut self) -> (ControlConnection, ControlConnection) {
        let address = self.listener.address().to_string();
        let named = self.trust.clone().expect_name("gantryd.example").unwrap();
        let connecting = control_connect(&address, &self.mover, &named);
        let (mover, daemon) = tokio::join!(connecting, self.listener.accept());
        (mover.unwrap(), daemon.unwrap())
    }
}

fn trust_in(authority: &CertificateAuthority) -> Trust {
    Trust::parse("authority".as_ref(), authority.certificate_pem().as_bytes()).unwrap()
}

fn refused<T>(result: Result<T, TransportError>, words: &str) {
    let error = result.err().expect("refused");
    assert_eq!(error.failure_kind(), FailureKind::Refused, "{error}");
    assert!(error.to_string().contains(words), "'{error}' does not say '{words}'");
}

#[tokio::test]
async fn messages_go_both_ways_whole_and_a_good_end_is_none() {
    let mut site = Site::new();
    let (mut mover, mut daemon) = site.ends().await;
    assert_eq!((mover.peer.pin, daemon.peer.pin), (site.daemon.pin(), site.mover.pin()));
    let task = TaskId([5; 16]);
    let long = Report::Ended { task, outcome: TaskOutcome::Done(vec![7; 5 << 20]) };
    let sending = async {
        mover.sender.send(&long).await.unwrap();
        mover.sender.send(&Report::Idle { load_hundredths: 3, free_bytes: None }).await.unwrap();
    };
    let receiving = async {
        // A receive that is given up half-way loses nothing.
        loop {
            let part = timeout(Duration::from_micros(300), daemon.receiver.receive::<Report>());
            if let Ok(whole) = part.await {
                return whole.unwrap();
            }
        }
    };
    let ((), whole) = tokio::join!(sending, receiving);
    assert_eq!(whole, Some(long));
    let idle: Option<Report> = daemon.receiver.receive().await.unwrap();
    assert!(matches!(idle, Some(Report::Idle { load_hundredths: 3, .. })));
    daemon.sender.send(&Command::Stop { task }).await.unwrap();
    assert_eq!(mover.receiver.receive().await.unwrap(), Some(Command::Stop { task }));
    mover.sender.finish().await;
    assert_eq!(daemon.receiver.receive::<Report>().await.unwrap(), None);
}

/// What no mover sends.
#[derive(Serialize, Deserialize)]
struct Rubbish(Vec<u8>);

impl ControlMessage for Rubbish {
    const BYTES_MAX: u32 = u32::MAX;
}

#[tokio::test]
async fn overlong_and_garbled_messages_end_the_link_with_the_reason() {
    for (rubbish, words) in [
        (vec![0xff; 300], "no message of control protocol"),
        // More than a command may have: refused by its length alone.
        (vec![1; Command::BYTES_MAX as usize + 1], "are allowed"),
    ] {
        let mut site = Site::new();
        let (mut mover, mut daemon) = site.ends().await;
        let sending = tokio::spawn(async move {
            let _ = daemon.sender.send(&Rubbish(rubbish)).await;
            daemon
        });
        let error = mover.receiver.receive::<Command>().await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let mut daemon = sending.await.unwrap();
        refused(daemon.receiver.receive::<Report>().await, "we break the protocol");
    }
}

#[tokio::test]
async fn strangers_expired_and_revoked_movers_are_refused() {
    let mut site = Site::new();
    let other = CertificateAuthority::generate().unwrap();
    let stranger = other.issue("proxy-1", YEAR).unwrap();
    refused(site.connect(&stranger).await, "refuses our certificate");

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let expired =
        site.authority.issue_between("proxy-1", now - YEAR, now - Duration::from_secs(60)).unwrap();
    refused(site.connect(&expired).await, "it has expired");

    let lasting = site.mover.clone();
    let revoked = site.trust.clone().without([lasting.pin()]);
    site.listener.set_trust(&site.daemon, &revoked).unwrap();
    refused(site.connect(&lasting).await, "refuses our certificate");
    let accepted = timeout(Duration::from_millis(100), site.listener.accept()).await;
    assert!(accepted.is_err(), "somebody was let in");

    site.listener.set_trust(&site.daemon, &site.trust).unwrap();
    assert!(site.connect(&lasting).await.is_ok());
}

#[tokio::test]
async fn a_mover_talks_only_to_gantryd_of_its_installation() {
    let site = Site::new();
    let address = site.listener.address().to_string();
    let named = site.trust.clone().expect_name("other.example").unwrap();
    refused(control_connect(&address, &site.mover, &named).await, "is not for 'other.example'");
    let other = trust_in(&CertificateAuthority::generate().unwrap());
    let result = control_connect(&address, &site.mover, &other).await;
    refused(result, "is not among those allowed in");
}

#[tokio::test]
async fn the_reason_of_a_close_reaches_the_mover() {
    let mut site = Site::new();
    let (mut mover, daemon) = site.ends().await;
    daemon.sender.close(&CloseReason::Refused("this mover is not enrolled".into()));
    refused(mover.receiver.receive::<Command>().await, "this mover is not enrolled");
}
