//! Removes Gantry's snapshots, also stubborn and stranded ones.
//!
//! In: a machine, whose snapshots, and how to detach hot-added disks. Out: [`Removed`]: what went,
//! what is left. Four rounds with pauses, each of which looks first and acts on what is there:
//!
//! | round | method |
//! | --- | --- |
//! | 1 | `RemoveSnapshot_Task` |
//! | 2 | the same, then `ConsolidateVMDisks_Task` |
//! | 3, 4 | a new snapshot and then `RemoveAllSnapshots_Task`, only if every snapshot is Gantry's; else as 2 |
//!
//! Invariants: a foreign snapshot is never removed; nothing is removed before the hot-added disks
//! are detached. Removing what is gone succeeds.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use gantry_common::ids::SessionId;

use super::create::list;
use super::mark::Mark;
use crate::broker::facts::SnapshotFacts;
use crate::limits;
use crate::vcenter::virtual_machine::NewSnapshot;
use crate::vcenter::{MoRef, TaskWait, VCenter, VimError, VmRef};

/// Detaches every disk of the machine that is hot-added to a proxy; succeeds if there is none.
pub type Detach<'a> =
    dyn Fn(VmRef) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync + 'a;

/// Which of Gantry's snapshots are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// The one of this name.
    Named(String),
    /// All that this owner left behind, except those of sessions that still run.
    Stranded {
        /// As given to [`Mark::new`].
        owner: String,
        /// Sessions that still run.
        running: Vec<SessionId>,
    },
}

impl Whose {
    /// Whether this snapshot is meant. Only a name with Gantry's mark ever is.
    pub fn means(&self, snapshot: &SnapshotFacts) -> bool {
        match self {
            Whose::Named(name) => &*snapshot.name == name && Mark::is_gantrys(name),
            Whose::Stranded { owner, running } => Mark::session_of(&snapshot.name, owner)
                .is_some_and(|session| !running.contains(&session)),
        }
    }
}

/// What is to be done.
pub struct Removal<'a> {
    /// The machine.
    pub vm: &'a VmRef,
    /// Which snapshots.
    pub whose: Whose,
    /// Called before each round that removes something.
    pub detach: &'a Detach<'a>,
    /// Before the second and each further round; one round more than pauses.
    pub pauses: &'a [Duration],
}

impl<'a> Removal<'a> {
    /// With the usual four rounds: [`usual_pauses`].
    pub fn new(
        vm: &'a VmRef,
        whose: Whose,
        detach: &'a Detach<'a>,
        pauses: &'a [Duration],
    ) -> Self {
        Removal { vm, whose, detach, pauses }
    }
}

/// The pauses between rounds.
pub fn usual_pauses() -> [Duration; 3] {
    limits::SNAPSHOT_ROUND_PAUSES_SECONDS.map(Duration::from_secs)
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Names of snapshots that are gone.
    pub gone: Vec<String>,
    /// Names of snapshots that would not go.
    pub left: Vec<String>,
    /// Whether the machine's disks still need consolidation.
    pub consolidation_needed: bool,
    /// Rounds that were needed.
    pub rounds: usize,
    /// What went wrong on the way.
    pub errors: Vec<String>,
}

impl Removed {
    /// Whether nothing is left to do.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty() && !self.consolidation_needed
    }
}

/// How a round removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `RemoveSnapshot_Task`.
    Remove,
    /// The same, and `ConsolidateVMDisks_Task` afterwards.
    RemoveAndConsolidate,
    /// A new snapshot, then `RemoveAllSnapshots_Task`.
    RemoveAll,
}

/// The method of a round (from 0), by all snapshots of the machine. Pure.
pub fn method(round: usize, all: &[SnapshotFacts]) -> Method {
    match round {
        0 => Method::Remove,
        1 => Method::RemoveAndConsolidate,
        _ if all.iter().all(|snapshot| Mark::is_gantrys(&snapshot.name)) => Method::RemoveAll,
        _ => Method::RemoveAndConsolidate,
    }
}

/// Removes Gantry's snapshots from a machine.
///
/// # Errors
/// Only when the machine cannot even be looked at; a machine that is gone has no snapshots. What
/// would not go is in [`Removed::left`].
pub async fn remove(vcenter: &VCenter, removal: Removal<'_>) -> Result<Removed, VimError> {
    let mut removed = Removed::default();
    let mut wanted: Vec<String> = Vec::new();
    let mut found = look(vcenter, removal.vm).await?;
    for round in 0..=removal.pauses.len() {
        let Some(state) = &found else { break };
        let ours = state.ours(&removal.whose);
        note_wanted(&mut wanted, &ours);
        if ours.is_empty() && !state.consolidation_needed {
            break;
        }
        // Only what would not go is waited for.
        if let Some(pause) = round.checked_sub(1).and_then(|at| removal.pauses.get(at)) {
            tokio::time::sleep(*pause).await;
        }
        removed.rounds = round + 1;
        match (removal.detach)(removal.vm.clone()).await {
            Ok(()) => {
                let how = method(round, &state.all);
                if let Err(error) = act(vcenter, removal.vm, how, &ours, state).await {
                    removed.errors.push(error.to_string());
                }
            }
            // With a disk attached elsewhere, removing would orphan its delta.
            Err(error) => {
                removed.errors.push(format!("{}: cannot detach: {error}", removal.vm));
            }
        }
        found = look(vcenter, removal.vm).await?;
    }
    if let Some(state) = found {
        removed.left = state.ours(&removal.whose).iter().map(|one| one.name.to_string()).collect();
        removed.consolidation_needed = state.consolidation_needed;
    }
    wanted.retain(|name| !removed.left.contains(name));
    removed.gone = wanted;
    Ok(removed)
}

fn note_wanted(wanted: &mut Vec<String>, ours: &[SnapshotFacts]) {
    for snapshot in ours {
        if !wanted.iter().any(|name| **name == *snapshot.name) {
            wanted.push(snapshot.name.to_string());
        }
    }
}

/// A machine's snapshots and whether it needs consolidation.
struct State {
    all: Vec<SnapshotFacts>,
    consolidation_needed: bool,
}

impl State {
    fn ours(&self, whose: &Whose) -> Vec<SnapshotFacts> {
        self.all.iter().filter(|snapshot| whose.means(snapshot)).cloned().collect()
    }
}

async fn look(vcenter: &VCenter, vm: &VmRef) -> Result<Option<State>, VimError> {
    let all = match list(vcenter, vm).await {
        Err(error) if error.is_gone() => return Ok(None),
        all => all?,
    };
    let path = "runtime.consolidationNeeded";
    let content = vcenter.properties_of(&vm.moref, &vm.to_string(), &[path]).await?;
    let needed = content.get(path).and_then(|value| value.as_bool()).unwrap_or(false);
    Ok(Some(State { all, consolidation_needed: needed }))
}

async fn act(
    vcenter: &VCenter,
    vm: &VmRef,
    method: Method,
    ours: &[SnapshotFacts],
    state: &State,
) -> Result<(), VimError> {
    match method {
        Method::RemoveAll if !ours.is_empty() => return remove_all(vcenter, vm, ours).await,
        Method::Remove | Method::RemoveAndConsolidate | Method::RemoveAll => {}
    }
    let consolidate = method != Method::Remove;
    let mut failed = None;
    for snapshot in ours {
        let removed = async {
            let task = vcenter.remove_snapshot(vm, &snapshot.moref).await?;
            wait(vcenter, vm, "RemoveSnapshot_Task", &task).await
        };
        match removed.await {
            Err(error) if !error.is_gone() => failed = failed.or(Some(error)),
            _ => {}
        }
    }
    if consolidate || state.consolidation_needed {
        let consolidated = async {
            let task = vcenter.consolidate_disks(vm).await?;
            wait(vcenter, vm, "ConsolidateVMDisks_Task", &task).await
        };
        match consolidated.await {
            // Old endpoints have no such method; then there is nothing that could be done.
            Err(error) if !error.is_unsupported() => failed = failed.or(Some(error)),
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A new snapshot makes vSphere list the chain anew; removing all then merges what a single removal
/// cannot. Looks once more in between: a person may have made a snapshot meanwhile.
async fn remove_all(vcenter: &VCenter, vm: &VmRef, ours: &[SnapshotFacts]) -> Result<(), VimError> {
    let Some(name) = ours.first().map(|snapshot| snapshot.name.to_string()) else { return Ok(()) };
    let new = NewSnapshot { name: &name, description: "to remove those below", quiesce: false };
    let made = async {
        let task = vcenter.create_snapshot(vm, &new).await?;
        wait(vcenter, vm, "CreateSnapshot_Task", &task).await
    };
    if let Err(error) = made.await {
        tracing::info!(%error, "a helping snapshot could not be made");
    }
    let all = list(vcenter, vm).await?;
    if !all.iter().all(|snapshot| Mark::is_gantrys(&snapshot.name)) {
        tracing::warn!(%vm, "a foreign snapshot has appeared: not all are removed");
        return Ok(());
    }
    let task = vcenter.remove_all_snapshots(vm).await?;
    wait(vcenter, vm, "RemoveAllSnapshots_Task", &task).await
}

async fn wait(
    vcenter: &VCenter,
    vm: &VmRef,
    method: &'static str,
    task: &MoRef,
) -> Result<(), VimError> {
    let object = vm.to_string();
    let timeout = Duration::from_secs(limits::SNAPSHOT_REMOVE_SECONDS_MAX);
    vcenter.wait_for_task(task, TaskWait::new(method, &object, timeout)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use gantry_common::ids::SessionId;

    use super::{Mark, Method, Whose, method};
    use crate::broker::facts::SnapshotFacts;
    use crate::vcenter::MoRef;

    fn snapshot(name: &str) -> SnapshotFacts {
        SnapshotFacts {
            moref: MoRef::new("VirtualMachineSnapshot", "s"),
            name: name.into(),
            description: "".into(),
            created: "".into(),
            parent: None,
            is_current: false,
        }
    }

    #[test]
    fn methods_escalate_and_spare_foreign_snapshots() {
        let ours = snapshot(&Mark::new(SessionId([1; 16]), "v").name());
        let alone = [ours.clone()];
        let rounds: Vec<_> = (0..4).map(|round| method(round, &alone)).collect();
        use Method::{Remove, RemoveAll, RemoveAndConsolidate};
        assert_eq!(rounds, [Remove, RemoveAndConsolidate, RemoveAll, RemoveAll]);
        let beside = [ours, snapshot("before update")];
        let rounds: Vec<_> = (0..4).map(|round| method(round, &beside)).collect();
        let spared = RemoveAndConsolidate;
        assert_eq!(rounds, [Remove, spared, spared, spared]);
    }

    #[test]
    fn only_what_is_meant_is_meant() {
        let (done, running) = (SessionId([1; 16]), SessionId([2; 16]));
        let name = |session| Mark::new(session, "v").name();
        let whose = Whose::Stranded { owner: "v".into(), running: vec![running] };
        assert!(whose.means(&snapshot(&name(done))));
        assert!(!whose.means(&snapshot(&name(running))), "its session still runs");
        let foreign = Mark::new(done, "other").name();
        assert!(!whose.means(&snapshot(&foreign)) && !whose.means(&snapshot("gantry-backup-x")));
        assert!(Whose::Named(name(done)).means(&snapshot(&name(done))));
        let hand_made = Whose::Named("before update".into());
        assert!(!hand_made.means(&snapshot("before update")), "even when it is named");
    }
}
