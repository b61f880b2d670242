//! Updates of every kind against the cache, and its size.

use std::collections::HashMap;

use super::Cache;
use crate::broker::devices::tests::DEVICES;
use crate::limits;
use crate::vcenter::property::ObjectContent;
use crate::vcenter::updates::{Change, ChangeOp, ObjectEvent, ObjectUpdate};
use crate::vcenter::{Element, Fault, FaultKind, MoRef, xml};

fn vm(number: usize) -> MoRef {
    MoRef::new("VirtualMachine", &format!("vm-{number}"))
}

fn plain(text: &str) -> Element {
    Element { text: text.into(), ..Element::default() }
}

fn reference(kind: &str, value: &str) -> Element {
    Element { ref_type: Some(kind.into()), ..plain(value) }
}

fn assign(path: &str, value: Element) -> Change {
    Change { path: path.into(), op: ChangeOp::Assign, value: Some(value) }
}

fn update(object: MoRef, event: ObjectEvent, changes: Vec<Change>) -> ObjectUpdate {
    ObjectUpdate { object, event, changes, missing: Vec::new() }
}

fn enter(object: MoRef, changes: Vec<Change>) -> ObjectUpdate {
    update(object, ObjectEvent::Enter, changes)
}

fn names(cache: &Cache) -> Vec<&str> {
    cache.vms().map(|(_, facts)| &*facts.name).collect()
}

#[test]
fn objects_enter_change_and_leave() {
    let mut cache = Cache::new();
    cache.apply(&enter(
        vm(1),
        vec![assign("name", plain("one")), assign("config.version", plain("vmx-19"))],
    ));
    cache.apply(&enter(vm(2), vec![assign("name", plain("two"))]));
    cache.apply(&update(vm(1), ObjectEvent::Modify, vec![assign("name", plain("uno"))]));
    assert_eq!(names(&cache), ["uno", "two"]);
    assert_eq!(cache.vm(&vm(1)).map(|facts| facts.hardware_version), Some(19));
    let unset = Change { path: "config.version".into(), op: ChangeOp::Assign, value: None };
    cache.apply(&update(vm(1), ObjectEvent::Modify, vec![unset]));
    assert_eq!(cache.vm(&vm(1)).map(|facts| facts.hardware_version), Some(0));
    cache.apply(&update(vm(2), ObjectEvent::Leave, Vec::new()));
    assert_eq!(names(&cache), ["uno"]);
    // Entering again forgets what is not named again.
    cache.apply(&enter(vm(1), Vec::new()));
    assert_eq!(names(&cache), [""]);
}

#[test]
fn what_a_resynchronisation_does_not_name_is_dropped() {
    let mut cache = Cache::new();
    for number in 1..=3 {
        cache.apply(&enter(vm(number), vec![assign("name", plain("x"))]));
    }
    cache.begin_resync();
    cache.apply(&enter(vm(2), vec![assign("name", plain("two"))]));
    assert_eq!(cache.vms().count(), 3, "until its end the old facts serve");
    cache.finish_resync();
    assert_eq!(names(&cache), ["two"]);
}

#[test]
fn a_part_of_a_property_makes_the_object_be_read_again() {
    let mut cache = Cache::new();
    let devices = xml::parse(DEVICES.as_bytes()).expect("XML");
    cache.apply(&enter(vm(1), vec![assign("config.hardware.device", devices.clone())]));
    assert_eq!(cache.vm(&vm(1)).map(|facts| facts.disks.len()), Some(2));
    for (path, op) in [
        ("config.hardware.device[2000].backing.changeId", ChangeOp::Assign),
        ("config.hardware.device[2016]", ChangeOp::Remove),
        ("customValue", ChangeOp::Add),
    ] {
        let change = Change { path: path.into(), op, value: Some(plain("x")) };
        cache.apply(&update(vm(1), ObjectEvent::Modify, vec![change]));
        assert_eq!(cache.take_stale(), [vm(1)], "{path}");
        assert!(cache.take_stale().is_empty());
    }
    let mut fresh = ObjectContent { object: vm(1), properties: Vec::new(), missing: Vec::new() };
    fresh
        .properties
        .push(crate::vcenter::property::Property { path: "name".into(), value: plain("renewed") });
    cache.renew(&fresh);
    let facts = cache.vm(&vm(1)).expect("the machine");
    assert_eq!((&*facts.name, facts.disks.len()), ("renewed", 0));
}

#[test]
fn what_cannot_be_read_is_named_until_it_can() {
    let mut cache = Cache::new();
    let kind = FaultKind::NoPermission { privilege: "System.Read".into(), object: None };
    let fault = Fault { kind, message: String::new() };
    let missing = vec![("config.uuid".into(), fault)];
    cache.apply(&ObjectUpdate { missing, ..enter(vm(1), Vec::new()) });
    let facts = cache.vm(&vm(1)).expect("the machine");
    assert!(facts.unreadable[0].1.contains("System.Read"));
    cache.apply(&update(vm(1), ObjectEvent::Modify, vec![assign("config.uuid", plain("u"))]));
    assert!(cache.vm(&vm(1)).expect("the machine").unreadable.is_empty());
}

#[test]
fn folders_make_paths_and_cycles_end() {
    let mut cache = Cache::new();
    let (root, center) = (MoRef::new("Folder", "group-d1"), MoRef::new("Datacenter", "dc-1"));
    let (top, web) = (MoRef::new("Folder", "group-v1"), MoRef::new("Folder", "group-v2"));
    let place = |moref: &MoRef, name: &str, parent: Option<&MoRef>| {
        let mut changes = vec![assign("name", plain(name))];
        if let Some(parent) = parent {
            changes.push(assign("parent", reference(&parent.kind, &parent.value)));
        }
        enter(moref.clone(), changes)
    };
    cache.apply(&place(&root, "Datacenters", None));
    cache.apply(&place(&center, "DC0", Some(&root)));
    cache.apply(&place(&top, "vm", Some(&center)));
    cache.apply(&place(&web, "Web%2fShop", Some(&top)));
    cache.apply(&place(&vm(1), "one", Some(&web)));
    let facts = cache.vm(&vm(1)).expect("the machine").clone();
    assert_eq!(cache.folder_of(&facts), "/DC0/vm/Web/Shop");
    assert_eq!(cache.datacenter_of(&vm(1)), Some("DC0"));
    cache.apply(&place(&top, "vm", Some(&web)));
    assert!(cache.folder_of(&facts).len() < 10_000);
    assert_eq!(cache.datacenter_of(&vm(1)), None);
}

#[test]
fn attributes_have_names() {
    let mut cache = Cache::new();
    let value = xml::parse(b"<v><a><key>7</key><value>gold</value></a></v>").expect("XML");
    cache.apply(&enter(vm(1), vec![assign("customValue", value)]));
    assert!(cache.lacks_attribute_names());
    cache.set_attribute_names(HashMap::from([(7, "backup".into())]));
    assert!(!cache.lacks_attribute_names());
    let facts = cache.vm(&vm(1)).expect("the machine");
    assert_eq!(cache.attributes_of(facts).collect::<Vec<_>>(), [("backup", "gold")]);
}

/// A machine larger than most: eight disks with three files each, six snapshots, long names.
fn large(number: usize) -> ObjectUpdate {
    let path = format!("[datastore-with-a-long-name-{number}] folder-of-the-machine-{number}");
    let disk = |key: usize| {
        let file = format!("{path}/machine-{number}_{key}");
        format!(
            "<d xsi:type=\"VirtualDisk\"><key>{key}</key><deviceInfo><label>Hard disk {key}</label>\
             </deviceInfo><backing xsi:type=\"VirtualDiskFlatVer2BackingInfo\"><fileName>{file}-000002\
             .vmdk</fileName><datastore type=\"Datastore\">datastore-{number}</datastore><uuid>6000C29\
             1-aaaa-bbbb-cccc-{number:012}</uuid><changeId>52 11 22 33 44 55 66 77-88 99 aa bb cc dd ee\
             ff/1234</changeId><parent><fileName>{file}-000001.vmdk</fileName><parent><fileName>{file}.\
             vmdk</fileName></parent></parent></backing><controllerKey>1000</controllerKey></d>"
        )
    };
    let disks: String = (2000..2008).map(disk).collect();
    let devices = format!("<val xmlns:xsi=\"x\">{disks}</val>");
    let snapshot = |at: usize| {
        format!(
            "<rootSnapshotList><snapshot type=\"VirtualMachineSnapshot\">snapshot-{number}{at}</snapshot>\
             <name>a snapshot before update {at}</name><description>{}</description></rootSnapshotList>",
            "made by hand ".repeat(12)
        )
    };
    let snapshots: String = (0..6).map(snapshot).collect();
    let read = |text: &str| xml::parse(text.as_bytes()).expect("XML");
    enter(
        vm(number),
        vec![
            assign("name", plain(&format!("a machine with a long name {number}"))),
            assign("config.instanceUuid", plain("503e1c4e-0000-1111-2222-333344445555")),
            assign("config.uuid", plain("423e1c4e-0000-1111-2222-333344445555")),
            assign("config.hardware.device", read(&devices)),
            assign("snapshot", read(&format!("<v>{snapshots}</v>"))),
        ],
    )
}

#[test]
fn two_hundred_and_fifty_machines_fit_into_16_mib() {
    let mut cache = Cache::new();
    (0..250).for_each(|number| cache.apply(&large(number)));
    let bytes = cache.estimated_bytes();
    println!("250 machines take {bytes} bytes");
    assert!(bytes > 250 * 8 * 300, "the estimate counts their disks");
    assert!(bytes <= 250 * limits::VM_FACTS_BYTES_MEAN_MAX, "{bytes}");
}
