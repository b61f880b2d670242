//! The mover's link to gantryd: dialled again and again, one writer and one reader while it stands.
//!
//! In: what the outbox holds, answers, commands. Out: reports, obeyed commands. Invariants: `Hello` is
//! the first message; each end speaks at least every third of `SILENCE_SECONDS_MAX`, and a gantryd that
//! is silent for longer is dialled anew. Must not: end a task because a link ended.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use gantry_common::control::{CONTROL_PROTOCOL, Command, Report, SILENCE_SECONDS_MAX};
use gantry_common::failure::{Failure, FailureKind};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::outbox::Tell;
use super::pause::pause;
use super::{Agent, facts};
use crate::transport::{
    CloseReason, ControlConnection, ControlReceiver, ControlSender, control_connect,
};

/// Ends that `Hello` carries, in bytes; others follow one by one.
pub(super) const HELLO_ENDS_BYTES_MAX: usize = 1 << 20;
/// Answers, or pages of them, that wait for the writer.
const ANSWERS_MAX: usize = 4;
const SILENCE_MAX: Duration = Duration::from_secs(SILENCE_SECONDS_MAX);
const SPEAK_EVERY: Duration = Duration::from_secs(SILENCE_SECONDS_MAX / 3);

impl Agent {
    /// Serves gantryd, and keeps the certificate valid; forever.
    pub async fn run(self: Rc<Self>) {
        tokio::join!(self.dial(), self.keep_certificate());
    }

    /// Dials gantryd, serves the link, and begins anew; forever. The pauses grow while gantryd cannot
    /// be reached or says nothing: one that was heard is dialled again soon, since it waits for us.
    async fn dial(self: &Rc<Self>) {
        let mut failures = 0;
        loop {
            let identity = self.identity.borrow().clone();
            let address = &self.config.address;
            let ended = match control_connect(address, &identity, &self.trust).await {
                Ok(connection) => {
                    tracing::info!("connected to gantryd at {address}");
                    let heard = Cell::new(false);
                    let ended = self.serve(connection, &heard).await;
                    if heard.get() {
                        failures = 0;
                    }
                    ended
                }
                Err(error) => Err(error.into()),
            };
            failures += 1;
            match ended {
                Ok(()) => tracing::info!("gantryd at {address} ended the link"),
                Err(failure) if failure.kind == FailureKind::Refused => tracing::error!(
                    "gantryd at {address}: {failure}; if this mover was revoked or its \
                     certificate has expired, enrol it again (gantry-mover enroll)"
                ),
                Err(failure) => tracing::warn!("gantryd at {address}: {failure}"),
            }
            tokio::time::sleep(pause(failures, fastrand::f64())).await;
        }
    }

    /// Serves one link to its end; `heard` tells whether gantryd said anything on it.
    async fn serve(
        self: &Rc<Self>,
        connection: ControlConnection,
        heard: &Cell<bool>,
    ) -> Result<(), Failure> {
        let ControlConnection { mut sender, receiver, .. } = connection;
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        let ended = {
            let mut writing = std::pin::pin!(self.write(&mut sender, answered));
            let mut reading = std::pin::pin!(self.read(receiver, answers, heard));
            tokio::select! {
                ended = &mut writing => ended,
                ended = &mut reading => ended,
            }
        };
        if let Err(failure) = &ended {
            sender.close(&CloseReason::Failed(failure.message.clone()));
        }
        ended
    }

    async fn write(
        &self,
        sender: &mut ControlSender,
        mut answers: mpsc::Receiver<Report>,
    ) -> Result<(), Failure> {
        let hello = Report::Hello {
            protocol: CONTROL_PROTOCOL,
            software: concat!("gantry-mover ", env!("CARGO_PKG_VERSION")).to_owned(),
            facts: facts::facts(&self.facts),
            tasks: self.standings(),
        };
        sender.send(&hello).await?;
        let mut tick = tokio::time::interval(SPEAK_EVERY);
        loop {
            let report = tokio::select! {
                biased;
                _ = tick.tick() => self.idle(),
                tell = self.outbox.next() => match tell {
                    Tell::End(task) => match self.outcome(task) {
                        Some(outcome) => Report::Ended { task, outcome },
                        // Forgotten this moment.
                        None => continue,
                    },
                    Tell::Progress(task, disks) => Report::Progress { task, disks },
                },
                Some(answer) = answers.recv() => answer,
            };
            sender.send(&report).await?;
        }
    }

    fn idle(&self) -> Report {
        let repository = self.facts.repository.as_ref();
        let space = repository.and_then(|served| facts::space(&served.path));
        Report::Idle {
            load_hundredths: facts::load_hundredths(),
            free_bytes: space.map(|(_, free)| free),
        }
    }

    async fn read(
        self: &Rc<Self>,
        mut receiver: ControlReceiver,
        answers: mpsc::Sender<Report>,
        heard: &Cell<bool>,
    ) -> Result<(), Failure> {
        loop {
            let command = timeout(SILENCE_MAX, receiver.receive::<Command>()).await;
            let command = command.map_err(|_| {
                let text = format!("said nothing for {SILENCE_SECONDS_MAX} s");
                Failure::new(FailureKind::Network, text)
            })?;
            let command = command?;
            heard.set(heard.get() || command.is_some());
            match command {
                None => return Ok(()),
                Some(Command::Ask { number, question }) => {
                    self.ask(number, question, answers.clone());
                }
                Some(command) => self.obey(command).await?,
            }
        }
    }
}
