//! What vCenters hold, and which of it a job takes.
//!
//! In: a vCenter's or job's id. Out: its machines from the broker's facts.

use gantry_api::backend::Answered;
use gantry_api::views::{ConnectionTest, InventoryDisk, InventoryVm};
use gantry_api::{Problem, Records};
use gantry_database::model::{Id, Job, VCenter};

use super::Gantryd;
use crate::broker::selection::{Verdict, select};
use crate::broker::{Cache, VmFacts};
use crate::daemon::settings;
use crate::snapshots::eligible::disk_obstacle;

impl Gantryd {
    pub(super) async fn look_at_vcenter(&self, id: Id) -> Answered<ConnectionTest> {
        let record: VCenter = Records::<VCenter>::get(self, id).await?;
        // Logged in to anew: what is asked is whether this record works now.
        let opened = self.parts.vcenters.connect(&record).await?;
        let content = opened.broker.vcenter().content().await.map_err(|error| error.failure())?;
        let machines = opened.broker.read(|cache| cache.vms().count());
        Ok(ConnectionTest {
            product: format!("{} build {}", content.full_name, content.build),
            api_version: content.api_version.clone(),
            instance_uuid: content.instance_uuid.clone(),
            privileges_missing: Vec::new(),
            notes: vec![
                format!("{machines} virtual machines are to be seen"),
                "privileges are judged by: gantry vcenter probe".to_owned(),
            ],
        })
    }

    pub(super) async fn machines(&self, vcenter: Id) -> Answered<Vec<InventoryVm>> {
        Records::<VCenter>::get(self, vcenter).await?;
        let opened = self.parts.vcenters.open(vcenter).await?;
        let mut all: Vec<InventoryVm> =
            opened.broker.read(|cache| cache.vms().map(|(_, vm)| shown(cache, vm)).collect());
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    pub(super) async fn selected(&self, job: Id) -> Answered<Vec<InventoryVm>> {
        let job: Job = Records::<Job>::get(self, job).await?;
        let rules = settings::rules(&job.selection).map_err(Problem::from)?;
        let opened = self.parts.vcenters.open(job.vcenter).await?;
        let taken = opened.broker.read(|cache| {
            let selected = select(cache, &rules).vms.into_iter();
            let selected = selected.filter(|vm| matches!(vm.verdict, Verdict::In { .. }));
            let facts = |uuid: String| Some(cache.vm_by_instance_uuid(&uuid)?.1);
            let found = selected.filter_map(|vm| facts(vm.instance_uuid));
            found.map(|vm| shown(cache, vm)).collect()
        });
        Ok(taken)
    }
}

fn shown(cache: &Cache, vm: &VmFacts) -> InventoryVm {
    let disks = vm.disks.values().map(|disk| InventoryDisk {
        label: disk.label.to_string(),
        capacity_bytes: disk.capacity_bytes,
        file: disk.base_file().to_owned(),
        refused: disk_obstacle(vm, disk).map(|why| why.to_string()),
    });
    InventoryVm {
        name: vm.name.to_string(),
        instance_uuid: (!vm.instance_uuid.is_empty()).then(|| vm.instance_uuid.to_string()),
        folder: cache.folder_of(vm),
        power: vm.power_state.to_string(),
        template: vm.is_template,
        cbt: vm.change_tracking,
        disks: disks.collect(),
    }
}
