//! Before the snapshot: whether the machine can be backed up, which of its disks, and from which base.
//!
//! In: the broker's facts, the settings, the repository's points. Out: [`Prepared`], or the reason why
//! nothing is begun. The only thing that is changed in vSphere is that tracking is switched on, where
//! that is safe and wanted.

use gantry_common::failure::{Failure, FailureKind};

use super::document::RunDocument;
use super::site::{AdmitDisk, AdmitRequest, Severity, Site};
use super::{Context, failed};
use crate::broker::{DiskFacts, HostFacts, VmConfig, VmFacts};
use crate::cbt::{PolicyOutcome, Tracking, enable_tracking, tracking};
use crate::mover::{PointDisk, PointFacts};
use crate::snapshots::Mark;
use crate::snapshots::eligible::{disk_obstacle, remarks, vm_obstacle};
use crate::vcenter::VmRef;

use super::changes::VmTracking;

/// A machine as a run sees it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The machine.
    pub vm: VmRef,
    /// Its facts.
    pub facts: VmFacts,
    /// Version and build of its host.
    pub host: Option<(String, String)>,
    /// Whether changes are tracked, as the run found it.
    pub tracking: Tracking,
}

/// What a run may begin with.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The machine.
    pub subject: Subject,
    /// Keys of the disks to back up.
    pub wanted: Vec<i32>,
    /// Its configuration.
    pub vm_config: String,
    /// The name under which its points are kept.
    pub name: String,
    /// The base point.
    pub base: Option<PointFacts>,
}

/// By which name a machine's points are kept; the instance UUID keeps namesakes apart.
pub fn point_name(facts: &VmFacts) -> String {
    format!("{} ({})", facts.name, facts.instance_uuid)
}

/// By what a disk is known for good: vCenter, machine, disk.
pub fn identity(vcenter_id: &str, facts: &VmFacts, disk: &DiskFacts) -> String {
    // Without a UUID of the backing its base file names it: it stays as long as the disk is not
    // moved, and after that everything is read once.
    let own = if disk.uuid.is_empty() { disk.base_file() } else { &*disk.uuid };
    format!("{vcenter_id}/{}/{own}", facts.instance_uuid)
}

/// What a point holds of a disk.
pub fn held<'a>(base: Option<&'a PointFacts>, identity: &str) -> Option<&'a PointDisk> {
    base.and_then(|point| point.disks.iter().find(|held| held.identity == identity))
}

/// Finds the machine; `own_snapshots` of its snapshots are the run's.
///
/// # Errors
/// `Usage` if it is not in the inventory (any more).
pub fn subject<S: Site>(
    context: &Context<'_, S>,
    instance_uuid: &str,
    own_snapshots: usize,
) -> Result<Subject, Failure> {
    context.broker.read(|cache| {
        let (moref, facts) = cache.vm_by_instance_uuid(instance_uuid).ok_or_else(|| {
            let text =
                format!("no virtual machine has the instance UUID {instance_uuid} (any more)");
            failed(FailureKind::Usage, text)
        })?;
        let version = |host: &HostFacts| (host.version.to_string(), host.build.to_string());
        Ok(Subject {
            vm: facts.vm_ref(moref),
            facts: facts.clone(),
            host: facts.host.as_ref().and_then(|host| cache.host(host)).map(version),
            tracking: tracking(facts, own_snapshots),
        })
    })
}

impl Subject {
    /// What decides about changed-block tracking.
    pub fn tracking<'a, S: Site>(
        &'a self,
        context: &Context<'_, S>,
        is_full_asked: bool,
    ) -> VmTracking<'a> {
        let host = self.host.as_ref();
        VmTracking {
            vm: &self.vm,
            hardware_version: self.facts.hardware_version,
            tracking: self.tracking,
            host: host.map(|(version, build)| (version.as_str(), build.as_str())),
            is_full_asked,
            block_bytes: u64::from(context.settings.block_size.bytes()),
            policy: context.settings.on_full,
        }
    }
}

/// What a run waits for its turn with.
///
/// # Errors
/// As [`subject`].
pub fn admission<S: Site>(
    context: &Context<'_, S>,
    document: &RunDocument,
) -> Result<AdmitRequest, Failure> {
    let subject = subject(context, &document.vm, 0)?;
    let facts = &subject.facts;
    let is_wanted = |disk: &&DiskFacts| {
        !context.excluded.contains_key(&disk.key) && disk_obstacle(facts, disk).is_none()
    };
    let disk = |disk: &DiskFacts| AdmitDisk {
        key: disk.key,
        datastore: disk.datastore_name().to_owned(),
        size_bytes: disk.capacity_bytes,
    };
    let datastores = context.broker.read(|cache| {
        let name = |moref| cache.datastore(moref).map(|found| found.name.to_string());
        facts.datastores.iter().filter_map(name).collect()
    });
    Ok(AdmitRequest {
        run: document.run,
        vm: document.vm.clone(),
        vm_name: document.vm_name.clone(),
        datastores,
        disks: facts.disks.values().filter(is_wanted).map(disk).collect(),
    })
}

/// Judges the machine.
///
/// # Errors
/// Why nothing is begun.
pub async fn prepare<S: Site>(
    context: &Context<'_, S>,
    instance_uuid: &str,
    full: bool,
) -> Result<Prepared, Failure> {
    // Updates may be late (a session that has just ended changed a lot): here it matters.
    let known = subject(context, instance_uuid, 0)?.vm;
    context.broker.refresh(&known.moref).await.map_err(|error| error.failure())?;
    let subject = subject(context, instance_uuid, 0)?;
    let facts = &subject.facts;
    if let Some(obstacle) = vm_obstacle(facts) {
        return Err(failed(FailureKind::Source, format!("{}: {obstacle}", facts.name)));
    }
    remarks(facts).into_iter().for_each(|remark| context.warn(None, &remark));
    let wanted = wanted_disks(context, facts)?;
    let vm_config = capture(context, &subject.vm).await?;
    let name = point_name(facts);
    let points = context.site.points(&name).await?;
    let base = points.last().filter(|_| !full).cloned();
    switch_tracking_on(context, &subject).await;
    let tracking = subject.tracking(context, full);
    for disk in facts.disks.values().filter(|disk| wanted.contains(&disk.key)) {
        let identity = identity(context.vcenter_id, facts, disk);
        // What is known before the snapshot may be enough to forbid it.
        if let PolicyOutcome::Stop(why) = tracking.foresee(disk, held(base.as_ref(), &identity)) {
            return Err(failed(FailureKind::Source, why));
        }
    }
    see_open_snapshots(context, facts)?;
    Ok(Prepared { subject, wanted, vm_config, name, base })
}

/// Keys of the disks to back up; the others are told, with the reason.
fn wanted_disks<S: Site>(context: &Context<'_, S>, facts: &VmFacts) -> Result<Vec<i32>, Failure> {
    let mut wanted = Vec::new();
    for disk in facts.disks.values() {
        let position = facts.position(disk);
        if let Some(why) = context.excluded.get(&disk.key) {
            context.say(Severity::Info, Some(&disk.label), &format!("left out: {why}"));
        } else if let Some(obstacle) = disk_obstacle(facts, disk) {
            context.warn(Some(&disk.label), &format!("left out ({position}): {obstacle}"));
        } else {
            wanted.push(disk.key);
        }
    }
    if wanted.is_empty() {
        let text = format!("{} has no disk that can be backed up", facts.name);
        return Err(failed(FailureKind::Source, text));
    }
    Ok(wanted)
}

async fn capture<S: Site>(context: &Context<'_, S>, vm: &VmRef) -> Result<String, Failure> {
    let captured = VmConfig::capture(context.broker.vcenter(), vm).await;
    let captured = captured.map_err(|error| error.failure())?;
    let bytes = captured.to_bytes().map_err(|error| failed(FailureKind::Source, error))?;
    String::from_utf8(bytes).map_err(|error| failed(FailureKind::Internal, error))
}

async fn switch_tracking_on<S: Site>(context: &Context<'_, S>, subject: &Subject) {
    if subject.tracking != Tracking::CanTurnOn || !context.settings.enable_cbt {
        return;
    }
    match enable_tracking(context.broker.vcenter(), &subject.vm).await {
        Ok(()) => context.say(
            Severity::Info,
            None,
            "changed-block tracking was switched on: it counts from this snapshot on",
        ),
        Err(error) => {
            context
                .warn(None, &format!("changed-block tracking could not be switched on: {error}"));
        }
    }
}

/// Refuses to add a snapshot to a datastore that has as many of Gantry as it may.
fn see_open_snapshots<S: Site>(context: &Context<'_, S>, facts: &VmFacts) -> Result<(), Failure> {
    let max = context.settings.snapshots_per_datastore.max(1);
    let is_open = |vm: &VmFacts| vm.snapshots.iter().any(|one| Mark::is_gantrys(&one.name));
    for datastore in &facts.datastores {
        let (open, name) = context.broker.read(|cache| {
            let on_it = |vm: &&VmFacts| vm.datastores.contains(datastore);
            let machines = cache.vms().map(|(_, vm)| vm).filter(on_it);
            let open = machines.filter(|vm| is_open(vm)).count();
            (open, cache.datastore(datastore).map(|found| found.name.to_string()))
        });
        if open >= max {
            return Err(failed(
                FailureKind::Source,
                format!(
                    "datastore {} has {open} open snapshots of backups, and may have {max} \
                     (snapshots_per_datastore): run this again when they are gone",
                    name.unwrap_or_else(|| datastore.to_string())
                ),
            ));
        }
    }
    Ok(())
}
