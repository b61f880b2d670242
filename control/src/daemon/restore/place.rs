//! Where a new machine is made, and by which proxy its disks are written.
//!
//! In: a request, the point, vCenter's places, proxies' facts. Out: a [`Plan`], or what is missing or
//! taken: all that can be known is asked before the session begins and anything is made.

use std::cmp::Reverse;

use gantry_api::views::{RestoreRequest, RestoreTarget};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::wire::PointSummary;
use gantry_database::model::{Id, Repository};

use super::Parts;
use super::plan::{self, Machine, Plan, Road};
use crate::broker::{Places, RebuildError, Target, VmConfig, VmSpec, new_uuid, refuse_taken};
use crate::daemon::vcenters::OpenVCenter;
use crate::run::{failed, now_ms};

/// Model of the controller whose disks no running machine takes.
const IDE: &str = "VirtualIDEController";

fn usage(error: impl std::fmt::Display) -> Failure {
    failed(FailureKind::Usage, error)
}

/// A failure of making a machine again.
pub(super) fn rebuild_failure(error: RebuildError) -> Failure {
    match error {
        RebuildError::Call(error) => error.failure(),
        refused => usage(refused),
    }
}

/// The configuration that a point keeps of its machine.
///
/// # Errors
/// It keeps none, or one that cannot be read; of the repository's mover.
pub(super) async fn config_of(
    parts: &Parts,
    repository: &Repository,
    name: &str,
    point: &str,
) -> Result<VmConfig, Failure> {
    let point = point.parse().map_err(|error| failed(FailureKind::Internal, error))?;
    let config = parts.fleet.vm_config(repository.mover, name, point).await?;
    if config.is_empty() {
        let text = "the point keeps no configuration of a machine: restore its disks to files";
        return Err(usage(text));
    }
    serde_json::from_slice(&config).map_err(|error| {
        usage(format!("the configuration that the point keeps is damaged: {error}"))
    })
}

/// Plans a restore to a new machine.
///
/// # Errors
/// `Usage`: what is asked for is not there, or is taken; no proxy can write there. Else of vCenter and
/// the repository's mover.
pub(super) async fn plan(
    parts: &Parts,
    request: &RestoreRequest,
    repository: &Repository,
    point: &PointSummary,
) -> Result<Plan, Failure> {
    let RestoreTarget::NewVm {
        vcenter,
        name,
        datastore,
        folder,
        host,
        cluster,
        pool,
        proxy,
        keep_identity,
        networks,
        power_on,
    } = request.target.clone()
    else {
        return Err(failed(FailureKind::Internal, "no machine is asked for"));
    };
    let config = config_of(parts, repository, &request.name, &point.point.to_string()).await?;
    let opened = parts.vcenters.open(vcenter).await?;
    let client = opened.broker.vcenter();
    let target = Target { folder, pool, cluster, host, datastore };
    let places = Places::read(client).await.map_err(|error| error.failure())?;
    let placement = places.place(&target).map_err(usage)?;
    let keep_identity = keep_identity && !config.instance_uuid.is_empty();
    let uuid = if keep_identity { config.instance_uuid.clone() } else { new_uuid() };
    let taken = refuse_taken(client, &placement, &name, &uuid).await;
    taken.map_err(rebuild_failure)?;
    let (proxy, road, why) = choose(parts, &opened, proxy, &target.datastore, &config)?;
    let mark = Id::draw(now_ms()).to_string();
    // The last digits are random.
    let mark = &mark[mark.len() - 8..];
    let machine = Machine {
        vcenter,
        folder: VmSpec::home(&target.datastore, &name, mark),
        name,
        uuid,
        keep_identity,
        target,
        networks,
        power_on,
        road,
        why,
    };
    let plan = plan::to_machine(request, point, &config, proxy, machine)?;
    // It says now what it would say after the disks were copied.
    let wish = super::machine::wish(&plan, &placement);
    let built = wish.map(|wish| VmSpec::build(&config, &wish).map_err(usage));
    built.unwrap_or_else(|| Err(failed(FailureKind::Internal, "no machine is planned")))?;
    Ok(plan)
}

/// The proxy that writes the disks: the one that is asked for, else the one with the least to do of
/// those that write the datastore's files, else of those that disks can be attached to.
fn choose(
    parts: &Parts,
    vcenter: &OpenVCenter,
    asked: Option<Id>,
    datastore: &str,
    config: &VmConfig,
) -> Result<(String, Road, String), Failure> {
    let asked = asked.map(|id| parts.proxy_names(&[id]).pop_first());
    if asked == Some(None) {
        return Err(usage("there is no such proxy"));
    }
    let asked = asked.flatten();
    let has_ide = config.disks.iter().any(|disk| is_ide(config, disk.key));
    let (mut able, mut unable) = (Vec::new(), Vec::new());
    for proxy in parts.proxies() {
        if asked.as_ref().is_some_and(|asked| *asked != proxy.id) {
            continue;
        }
        let reached = proxy.facts.vm.as_ref().is_some_and(|vm| {
            // Of this vCenter, not of another one that has a datastore of that name.
            let known = |cache: &crate::broker::Cache| {
                cache.vm_by_instance_uuid(&vm.instance_uuid).is_some()
            };
            vm.datastores.contains(datastore) && vcenter.broker.read(known)
        });
        match plan::road(&proxy.facts, reached, datastore, has_ide) {
            Ok((road, why)) => {
                let running =
                    parts.mover_of_proxy(&proxy.id).map_or(0, |mover| mover.tasks_running);
                able.push((
                    Reverse(matches!(road, Road::Direct(_))),
                    running,
                    proxy.id,
                    (road, why),
                ));
            }
            Err(why) => unable.push(format!("{}: {why}", proxy.id)),
        }
    }
    able.sort_by(|one, other| (&one.0, one.1, &one.2).cmp(&(&other.0, other.1, &other.2)));
    if let Some((_, _, proxy, (road, why))) = able.into_iter().next() {
        return Ok((proxy, road, why));
    }
    let why = match unable.is_empty() {
        true => "none is connected".to_owned(),
        false => unable.join("; "),
    };
    Err(usage(format!("no proxy can write new disks to datastore {datastore}: {why}")))
}

/// Whether a disk of the configuration is on an IDE controller.
pub(super) fn is_ide(config: &VmConfig, key: i32) -> bool {
    let disk = config.disks.iter().find(|disk| disk.key == key);
    let of = |key: i32| config.controllers.iter().find(|one| one.key == key);
    disk.and_then(|disk| of(disk.controller_key)).is_some_and(|one| one.model == IDE)
}
