//! The fleet as a service: a listener for movers, one task for each of their connections, a clock,
//! and around the state one lock that is never held while anything is waited for.
//!
//! In: an address, gantryd's identity, whom to trust, the registry. Out: a [`Fleet`], which can be
//! cloned, for whoever has work for movers or questions to them. Invariant: a mover whose key the
//! registry does not know is heard no further than its certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gantry_common::failure::Failure;
use gantry_common::ids::{PeerId, TaskId};
use gantry_common::secret::Secret;
use gantry_transport::{CloseReason, ControlListener, Identity, TransportError, Trust};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use self::link::Outbox;
use super::registry::MoverRegistry;
use super::state::{Action, AskId, FleetState, LinkId, Reply};
use super::task_handle::{Mailbox, TaskHandle};
use super::view::{EnrolledMover, MoverView};
use crate::limits;

mod link;
mod questions;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_secs(1);

/// When it stops: between two looks whether the connections have ended, and how many.
const CLOSE_LOOK_EVERY: Duration = Duration::from_millis(50);
const CLOSE_LOOKS: u32 = 20;

/// Every mover under gantryd. Clones are the same fleet; it ends with the last of them and of its
/// [`TaskHandle`]s.
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
    trusts: mpsc::Sender<(Identity, Trust)>,
    /// Aborted with the last clone.
    _service: Arc<JoinSet<()>>,
}

/// What the connections need.
pub(super) struct Shared {
    address: SocketAddr,
    registry: Arc<dyn MoverRegistry>,
    began: Instant,
    began_ms: u64,
    changes: watch::Sender<u64>,
    core: Mutex<Core>,
}

struct Core {
    state: FleetState,
    outboxes: BTreeMap<LinkId, Outbox>,
    owners: BTreeMap<TaskId, Arc<Mailbox>>,
    asks: BTreeMap<AskId, oneshot::Sender<Reply>>,
    /// Where each mover connected from last.
    addresses: BTreeMap<PeerId, IpAddr>,
    last_link: u64,
}

impl Fleet {
    /// Listens for movers at `address` (with port 0 the system chooses one). `software` is gantryd's
    /// name and version.
    ///
    /// # Errors
    /// The address cannot be had, or the identity not be used.
    pub fn start(
        address: SocketAddr,
        software: &str,
        identity: &Identity,
        trust: &Trust,
        registry: Arc<dyn MoverRegistry>,
    ) -> Result<Fleet, TransportError> {
        let listener = ControlListener::bind(address, identity, trust)?;
        let core = Core {
            state: FleetState::new(software),
            outboxes: BTreeMap::new(),
            owners: BTreeMap::new(),
            asks: BTreeMap::new(),
            addresses: BTreeMap::new(),
            last_link: 0,
        };
        let began_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let shared = Arc::new(Shared {
            address: listener.address(),
            registry,
            began: Instant::now(),
            began_ms: began_ms.as_millis() as u64,
            changes: watch::Sender::new(0),
            core: Mutex::new(core),
        });
        let (trusts, new_trusts) = mpsc::channel(1);
        let mut service = JoinSet::new();
        service.spawn(listen(shared.clone(), listener, new_trusts));
        service.spawn(keep_time(shared.clone()));
        Ok(Fleet { shared, trusts, _service: Arc::new(service) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// New connections meet this certificate (of a renewed identity, say) and trust.
    pub async fn set_identity(&self, identity: Identity, trust: Trust) {
        // Only a service that has ended does not take it.
        let _ = self.trusts.send((identity, trust)).await;
    }

    /// Every mover that has connected since the start.
    pub fn movers(&self) -> Vec<MoverView> {
        self.shared.core().state.views()
    }

    /// The mover of this name, if it has connected since the start. Of several (a host that was
    /// enrolled anew) the one that was heard of last.
    pub fn mover(&self, name: &str) -> Option<MoverView> {
        let named = self.movers().into_iter().filter(|mover| mover.name == name);
        named.max_by_key(|mover| (mover.connected_since_ms, mover.lost_since_ms))
    }

    /// Where a mover connected from last; nothing: it has not since the start.
    pub fn address_of(&self, mover: PeerId) -> Option<IpAddr> {
        self.shared.core().addresses.get(&mover).copied()
    }

    /// A number that grows whenever a view may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Has a mover carry out a task: `work` is the JSON of a `gantry_common::work` document,
    /// `credentials` become files in the task's private folder. It need not be connected now.
    ///
    /// # Errors
    /// The task is there already, the mover has too many, or a credential's name or size is refused.
    pub fn run_task(
        &self,
        mover: PeerId,
        task: TaskId,
        work: Vec<u8>,
        credentials: Vec<(String, Secret)>,
    ) -> Result<TaskHandle, Failure> {
        self.own(mover, task, |state, now_ms| state.run(mover, task, work, credentials, now_ms))
    }

    /// Listens to a task that was begun earlier: by another life of gantryd, or by an owner that
    /// has dropped its handle. The mover still runs it, or keeps its end; if it is connected and
    /// does not know it, the task ends as [`gantry_common::control::TaskOutcome::Died`].
    ///
    /// # Errors
    /// Somebody listens already, or it is another mover's.
    pub fn adopt_task(&self, mover: PeerId, task: TaskId) -> Result<TaskHandle, Failure> {
        self.own(mover, task, |state, now_ms| state.adopt(mover, task, now_ms))
    }

    /// Ends a task; its end comes as usual.
    pub fn stop(&self, task: TaskId) {
        self.shared.change(|state, now_ms| state.stop(task, now_ms));
    }

    /// Limits a task's rate on the wire (bytes a second), or no longer.
    pub fn set_rate(&self, task: TaskId, bytes_per_second: Option<u64>) {
        self.shared.change(|state, now_ms| state.set_rate(task, bytes_per_second, now_ms));
    }

    /// Gives a task a credential, or another content of it.
    ///
    /// # Errors
    /// There is no such task, or the name or size is refused.
    pub fn set_credential(&self, task: TaskId, name: &str, content: Secret) -> Result<(), Failure> {
        self.shared.change(|state, now_ms| state.set_credential(task, name, content, now_ms))
    }

    /// A task's end is written down, or nobody wants it: see [`MoverView::orphans`] for those that
    /// are to be adopted or forgotten after a start.
    pub fn forget(&self, mover: PeerId, task: TaskId) {
        let mut core = self.shared.core();
        core.owners.remove(&task);
        core.state.forget(mover, task, self.shared.now_ms());
        self.shared.act(&mut core);
    }

    /// The registry has revoked a mover: its connection and its tasks end now.
    pub fn revoke(&self, mover: PeerId) {
        self.shared.change(|state, now_ms| state.revoke(mover, now_ms));
    }

    /// Ends every connection, because gantryd stops: movers go on with their tasks and dial again soon,
    /// instead of after a long silence.
    pub async fn close(&self) {
        {
            let mut core = self.shared.core();
            let links: Vec<LinkId> = core.outboxes.keys().copied().collect();
            for link in links {
                core.close(link, CloseReason::Failed("gantryd stops".into()));
            }
        }
        for _ in 0..CLOSE_LOOKS {
            tokio::time::sleep(CLOSE_LOOK_EVERY).await;
            if self.shared.core().state.connected_movers().is_empty() {
                break;
            }
        }
        // What QUIC has to say of it is on its way.
        tokio::time::sleep(CLOSE_LOOK_EVERY).await;
    }

    /// The owner of a task has dropped its handle.
    pub(super) fn let_go(&self, task: TaskId, mailbox: &Arc<Mailbox>) {
        let mut core = self.shared.core();
        if core.owners.get(&task).is_some_and(|known| Arc::ptr_eq(known, mailbox)) {
            core.owners.remove(&task);
            core.state.disown(task);
        }
    }

    fn own(
        &self,
        mover: PeerId,
        task: TaskId,
        begin: impl FnOnce(&mut FleetState, u64) -> Result<(), Failure>,
    ) -> Result<TaskHandle, Failure> {
        let mailbox = Arc::new(Mailbox::default());
        let mut core = self.shared.core();
        begin(&mut core.state, self.shared.now_ms())?;
        core.owners.insert(task, mailbox.clone());
        self.shared.act(&mut core);
        Ok(TaskHandle::new(self.clone(), mover, task, mailbox))
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        // What panics under this lock is a bug; the fleet goes on with what it knows.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since 1970 that never go back.
    fn now_ms(&self) -> u64 {
        self.began_ms + self.began.elapsed().as_millis() as u64
    }

    fn change<T>(&self, change: impl FnOnce(&mut FleetState, u64) -> T) -> T {
        let mut core = self.core();
        let outcome = change(&mut core.state, self.now_ms());
        self.act(&mut core);
        outcome
    }

    /// Carries out what the state wants, and tells that a view may have changed.
    fn act(&self, core: &mut Core) {
        self.act_quietly(core);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// As [`Shared::act`], where no view has changed; how many actions there were.
    fn act_quietly(&self, core: &mut Core) -> usize {
        let mut done = 0;
        loop {
            let actions = core.state.take_actions();
            if actions.is_empty() {
                return done;
            }
            done += actions.len();
            for action in actions {
                core.carry_out(action);
            }
        }
    }
}

impl Core {
    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send { link, command } => {
                let Some(outbox) = self.outboxes.get(&link) else { return };
                if !outbox.send(command) {
                    let reason = "the mover does not take its commands".into();
                    self.close(link, CloseReason::Failed(reason));
                    self.state.link_lost(link);
                }
            }
            Action::Close { link, reason } => self.close(link, reason),
            Action::Tell { task, event } => {
                if let Some(mailbox) = self.owners.get(&task) {
                    mailbox.put(event);
                }
            }
            Action::Reply { ask, reply } => {
                if let Some(asked) = self.asks.remove(&ask) {
                    // Who no longer waits needs no answer.
                    let _ = asked.send(reply);
                }
            }
        }
    }

    fn close(&mut self, link: LinkId, reason: CloseReason) {
        if let Some(outbox) = self.outboxes.remove(&link) {
            outbox.close(reason);
        }
    }
}

async fn listen(
    shared: Arc<Shared>,
    mut listener: ControlListener,
    mut trusts: mpsc::Receiver<(Identity, Trust)>,
) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(connection) => drop(tokio::spawn(link::serve(shared.clone(), connection))),
                Err(error) => {
                    tracing::error!(%error, "movers can no longer connect: restart gantryd");
                    return;
                }
            },
            Some((identity, trust)) = trusts.recv() => {
                if let Err(error) = listener.set_trust(&identity, &trust) {
                    tracing::error!(%error, "the old certificate stays in use");
                }
            }
        }
    }
}

/// Lets time pass, and looks now and then whether every connected mover is still enrolled.
async fn keep_time(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        ticks.tick().await;
        let connected = {
            let mut core = shared.core();
            core.state.tick(shared.now_ms());
            if shared.act_quietly(&mut core) > 0 {
                shared.changes.send_modify(|changes| *changes += 1);
            }
            core.state.connected_movers()
        };
        if looked.elapsed() >= Duration::from_secs(limits::ENROLLED_CHECK_SECONDS) {
            looked = Instant::now();
            for EnrolledMover { pin, .. } in connected {
                // A registry that fails says nothing against a mover.
                if matches!(shared.registry.enrolled(pin).await, Ok(None)) {
                    shared.change(|state, now_ms| state.revoke(pin, now_ms));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
