//! A machine is made again from its captured configuration, on a vCenter (vcsim) that Gantry's
//! developers did not write.

use std::collections::BTreeMap;
use std::time::Duration;

use gantry_control::broker::{
    DiskSource, PlaceError, Places, RebuildError, Target, VmConfig, VmSpec, Wish, rebuild, register,
};
use gantry_control::vcenter::retry::Repeat;
use gantry_control::vcenter::{TaskWait, VmRef};
use gantry_tests::vcsim::{Vcsim, machines, vcenter};

fn target(host: Option<&str>) -> Target {
    Target {
        folder: Some("/DC0/vm".into()),
        host: host.map(str::to_owned),
        datastore: "LocalDS_0".into(),
        ..Target::default()
    }
}

#[tokio::test]
async fn a_machine_is_made_again_with_disks_that_are_there() {
    let vcsim = Vcsim::start(1);
    let vcenter = vcenter(&vcsim);
    let old = machines(&vcenter).await.remove(0);
    let config = VmConfig::capture(&vcenter, &old).await.expect("a configuration");
    let places = Places::read(&vcenter).await.expect("places");
    let placement = places.place(&target(None)).expect("a place");
    assert!(!placement.networks.is_empty(), "{placement:?}");

    // Its own name is taken, in the folder that it is in.
    let folder = "[LocalDS_0] back";
    let file = VmSpec::disk_file(folder, "back", 0);
    let disks: BTreeMap<_, _> =
        config.disks.iter().map(|disk| (disk.key, DiskSource::Existing(file.clone()))).collect();
    let wish = Wish { folder, disks, ..Wish::default() };
    let taken = rebuild(&vcenter, &config, &placement, &wish).await.expect_err("its name is taken");
    assert!(matches!(taken, RebuildError::NameTaken { .. }), "{taken}");
    let wish = Wish { name: Some("back"), ..wish };
    let kept = Wish { keep_identity: true, ..wish.clone() };
    let taken = rebuild(&vcenter, &config, &placement, &kept).await.expect_err("it still lives");
    assert!(matches!(taken, RebuildError::IdentityTaken { .. }), "{taken}");

    // vcsim asks for the file, as vSphere does.
    let absent = rebuild(&vcenter, &config, &placement, &wish).await.expect_err("no disk's file");
    assert!(absent.to_string().contains("FileNotFound"), "{absent}");
    let place = vcsim.datastore("LocalDS_0").join("back");
    // What vcsim leaves behind of a machine that it did not make.
    std::fs::remove_dir_all(&place).expect("the folder was made");
    std::fs::create_dir(&place).expect("a folder");
    std::fs::write(place.join("back.vmdk"), "descriptor").expect("writable");
    std::fs::write(place.join("back-flat.vmdk"), "data").expect("writable");
    let made = rebuild(&vcenter, &config, &placement, &wish).await.expect("a machine");
    assert_eq!(made.config_file, "[LocalDS_0] back/back.vmx");
    let again = VmConfig::capture(&vcenter, &made.vm).await.expect("its configuration");
    assert_eq!((again.cpus, again.memory_mib), (config.cpus, config.memory_mib));
    assert_eq!((&again.guest_id, &again.firmware), (&config.guest_id, &config.firmware));
    assert_eq!(again.disks[0].file, "[LocalDS_0] back/back.vmdk");
    assert_eq!(again.disks[0].capacity_bytes, config.disks[0].capacity_bytes);
    assert_eq!(again.networks.len(), config.networks.len());
    assert_ne!(again.instance_uuid, config.instance_uuid);
    assert!(!again.instance_uuid.is_empty());

    // Out of the inventory and in again, from its files.
    vcenter.unregister_vm(&made.vm).await.expect("it goes");
    vcenter.unregister_vm(&made.vm).await.expect("that it is gone is no error");
    let back = register(&vcenter, &placement, &made.config_file, "back").await;
    let back = back.expect("registered");
    assert!(
        machines(&vcenter).await.iter().any(|vm| vm.name == "back" && vm.moref == back.vm.moref)
    );
}

#[tokio::test]
async fn a_machine_with_new_disks_keeps_its_identity_and_loses_a_network() {
    let vcsim = Vcsim::start(1);
    let vcenter = vcenter(&vcsim);
    let old: VmRef = machines(&vcenter).await.remove(0);
    let mut config = VmConfig::capture(&vcenter, &old).await.expect("a configuration");
    assert!(config.networks[0].port_group_name.is_some() || config.networks[0].network.is_some());
    config.networks[0].network = Some("a network of another site".into());
    config.networks[0].port_group = None;
    config.networks[0].port_group_name = None;
    let places = Places::read(&vcenter).await.expect("places");
    let nowhere = places.place(&Target { datastore: "LocalDS_9".into(), ..target(None) });
    let nowhere = nowhere.expect_err("no such datastore");
    assert!(matches!(nowhere, PlaceError::Missing { .. }), "{nowhere}");
    assert!(nowhere.to_string().contains("LocalDS_0"), "{nowhere}");
    let placement = places.place(&target(Some("DC0_H0"))).expect("a place");

    // Its machine is gone from the inventory, as after a disaster.
    let off = vcenter
        .call("PowerOffVM_Task", &old.moref, &old.name, Repeat::Changes, |_| {})
        .await
        .expect("a task");
    let task = off.moref_at("returnval").expect("a task");
    let wait = TaskWait::new("PowerOffVM_Task", &old.name, Duration::from_secs(60));
    vcenter.wait_for_task(&task, wait).await.expect("it is off");
    vcenter.unregister_vm(&old).await.expect("it goes");
    let folder = "[LocalDS_0] fresh";
    let file = VmSpec::disk_file(folder, "fresh", 0);
    let disks = config.disks.iter().map(|disk| (disk.key, DiskSource::New(file.clone())));
    let wish = Wish {
        name: Some("fresh"),
        keep_identity: true,
        folder,
        disks: disks.collect(),
        ..Wish::default()
    };
    let made = rebuild(&vcenter, &config, &placement, &wish).await.expect("a machine");
    let note = made.notes.iter().find(|note| note.contains("a network of another site"));
    assert!(note.is_some_and(|note| note.contains("disconnected")), "{:?}", made.notes);
    let again = VmConfig::capture(&vcenter, &made.vm).await.expect("its configuration");
    assert_eq!(again.instance_uuid, config.instance_uuid);
    assert_eq!(again.networks[0].mac, config.networks[0].mac);
    assert!(!again.networks[0].starts_connected);
    assert!(vcsim.datastore("LocalDS_0").join("fresh/fresh.vmdk").exists(), "a new disk was made");
}

#[tokio::test]
async fn a_standalone_host_takes_a_machine_too() {
    let vcsim = Vcsim::start_esx(1);
    let vcenter = vcenter(&vcsim);
    let old = machines(&vcenter).await.remove(0);
    let config = VmConfig::capture(&vcenter, &old).await.expect("a configuration");
    let places = Places::read(&vcenter).await.expect("places");
    let anywhere = Target { datastore: "LocalDS_0".into(), ..Target::default() };
    let placement = places.place(&anywhere).expect("a place");
    let folder = "[LocalDS_0] esx";
    let file = VmSpec::disk_file(folder, "esx", 0);
    let disks = config.disks.iter().map(|disk| (disk.key, DiskSource::New(file.clone())));
    let wish = Wish { name: Some("esx"), folder, disks: disks.collect(), ..Wish::default() };
    rebuild(&vcenter, &config, &placement, &wish).await.expect("a machine");
    assert_eq!(machines(&vcenter).await.len(), 2);
}
