//! Questions to movers, and tickets for their repositories.
//!
//! In: what somebody wants to know of a mover. Out: the whole answer, bounded in size and time, or
//! why there is none. Who stops waiting gives the question up.

use std::time::Duration;

use gantry_common::control::{Answer, MoverFacts, Question};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PeerId, PointId, SessionId};
use gantry_common::limits as common_limits;
use gantry_common::manage::{ManageReport, ManageRequest};
use gantry_common::wire::PointSummary;
use gantry_transport::{Rights, Ticket, TicketKey};
use tokio::sync::oneshot;

use super::{Fleet, Shared};
use crate::fleet::state::AskId;
use crate::limits;

impl Fleet {
    /// The restore points of a repository; of all names if `name` is empty.
    ///
    /// # Errors
    /// The mover is not connected, gives no answer in time, or refuses.
    pub async fn points(
        &self,
        mover: PeerId,
        name: &str,
        deleted: bool,
    ) -> Result<Vec<PointSummary>, Failure> {
        match self.ask(mover, Question::Points { name: name.to_owned(), deleted }).await? {
            Answer::Points(points) => Ok(points),
            _ => Err(other_answer()),
        }
    }

    /// The configuration of a point's VM, as it was kept.
    ///
    /// # Errors
    /// As [`Fleet::points`].
    pub async fn vm_config(
        &self,
        mover: PeerId,
        name: &str,
        point: PointId,
    ) -> Result<Vec<u8>, Failure> {
        let question = Question::VmConfig { name: name.to_owned(), point: point.to_string() };
        match self.ask(mover, question).await? {
            Answer::VmConfig(config) if config.len() <= common_limits::VM_CONFIG_BYTES_MAX => {
                Ok(config)
            }
            _ => Err(other_answer()),
        }
    }

    /// Has a repository looked after. May take hours.
    ///
    /// # Errors
    /// As [`Fleet::points`].
    pub async fn manage(
        &self,
        mover: PeerId,
        request: ManageRequest,
    ) -> Result<ManageReport, Failure> {
        match self.ask(mover, Question::Manage(request)).await? {
            Answer::Manage(report) => Ok(report),
            _ => Err(other_answer()),
        }
    }

    /// Has a repository keep a copy of gantryd's database.
    ///
    /// # Errors
    /// As [`Fleet::points`], or it is too large.
    pub async fn keep_copy(
        &self,
        mover: PeerId,
        created_ms: u64,
        bytes: Vec<u8>,
    ) -> Result<(), Failure> {
        if bytes.len() > common_limits::COPY_BYTES_MAX {
            let (found, max) = (bytes.len(), common_limits::COPY_BYTES_MAX);
            let text = format!("a copy of {found} bytes; a repository keeps at most {max}");
            return Err(Failure::new(FailureKind::Usage, text));
        }
        match self.ask(mover, Question::KeepCopy { created_ms, bytes }).await? {
            Answer::CopyKept => Ok(()),
            _ => Err(other_answer()),
        }
    }

    /// What a mover is and can do, now.
    ///
    /// # Errors
    /// As [`Fleet::points`].
    pub async fn facts(&self, mover: PeerId) -> Result<MoverFacts, Failure> {
        match self.ask(mover, Question::Facts).await? {
            Answer::Facts(facts) => Ok(facts),
            _ => Err(other_answer()),
        }
    }

    /// A ticket (hexadecimal) that lets `peer` do something with one name in a repository, from now
    /// on for `valid_for`.
    ///
    /// # Errors
    /// The repository's mover is not enrolled or has not connected since the start, or the name or
    /// time is too long.
    pub async fn ticket(
        &self,
        repository: PeerId,
        session: SessionId,
        peer: PeerId,
        name: &str,
        rights: Rights,
        valid_for: Duration,
    ) -> Result<String, Failure> {
        let refuse = |text: String| Failure::new(FailureKind::Usage, text);
        if name.len() > common_limits::NAME_BYTES_MAX {
            return Err(refuse(format!("a name of {} bytes", name.len())));
        }
        if valid_for > Duration::from_secs(limits::TICKET_SECONDS_MAX) {
            return Err(refuse(format!("a ticket for {} s is too long", valid_for.as_secs())));
        }
        let enrolled = self.shared.registry.enrolled(repository).await?;
        let key = enrolled.and_then(|mover| mover.ticket_key);
        let key = key.as_ref().and_then(TicketKey::from_text);
        let key = key.ok_or_else(|| refuse(format!("mover {repository} keeps no repository")))?;
        let facts = self.movers().into_iter().find(|mover| mover.pin == repository);
        let facts = facts.and_then(|mover| mover.facts.repository).ok_or_else(|| {
            let text = format!("the mover {repository} of the repository has not connected yet");
            Failure::new(FailureKind::Network, text)
        })?;
        let ticket = Ticket {
            session,
            repository: facts.id,
            peer,
            name: name.to_owned(),
            rights,
            expires_ms: self.shared.now_ms() + valid_for.as_millis() as u64,
        };
        let bytes = key.issue(&ticket).0;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    async fn ask(&self, mover: PeerId, question: Question) -> Result<Answer, Failure> {
        let (reply, answered) = oneshot::channel();
        let ask = {
            let mut core = self.shared.core();
            let ask = core.state.ask(mover, question, self.shared.now_ms())?;
            core.asks.insert(ask, reply);
            self.shared.act(&mut core);
            ask
        };
        // Whoever stops waiting gives the question up.
        let _asked = Asked { shared: &self.shared, ask };
        answered.await.unwrap_or_else(|_| Err(other_answer()))
    }
}

struct Asked<'a> {
    shared: &'a Shared,
    ask: AskId,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        if core.asks.remove(&self.ask).is_some() {
            core.state.give_up(self.ask);
        }
    }
}

fn other_answer() -> Failure {
    Failure::new(FailureKind::Internal, "a mover's answer is of another kind than its question")
}
