//! What a specification asks for, and what it says cannot be brought back.

use std::collections::BTreeMap;

use super::{DiskSource, SpecError, VmSpec, Wish, file_name, mac_kind};
use crate::broker::places::Network;
use crate::broker::vm_config::{self, ConfigController, ConfigDisk, VmConfig};
use crate::vcenter::xml_writer::XmlWriter;
use crate::vcenter::{Element, MoRef, xml};

fn config() -> VmConfig {
    let controller = |key, model: &str, bus| ConfigController {
        key,
        model: model.into(),
        bus,
        is_shared: false,
    };
    let disk = |key, controller_key| ConfigDisk {
        key,
        label: format!("Hard disk {key}"),
        uuid: String::new(),
        capacity_bytes: 10 << 30,
        file: "[old] web/web.vmdk".into(),
        controller_key,
        unit: 0,
    };
    let adapter = |key, network: &str| vm_config::Network {
        key,
        label: format!("Network adapter {key}"),
        model: "VirtualE1000e".into(),
        mac: "00:50:56:01:02:03".into(),
        network: Some(network.into()),
        port_group: None,
        port_group_name: None,
        starts_connected: true,
    };
    VmConfig {
        format: 1,
        name: "web 50%/a".into(),
        instance_uuid: "i-old".into(),
        bios_uuid: "b-old".into(),
        guest_id: "debian11_64Guest".into(),
        guest_name: "Debian".into(),
        hardware_version: "vmx-19".into(),
        firmware: "efi".into(),
        secure_boot: true,
        nvram: Some("web.nvram".into()),
        config_file: "[old] web/web.vmx".into(),
        annotation: "<of> & course".into(),
        cpus: 4,
        cores_per_socket: 2,
        memory_mib: 4096,
        has_vtpm: true,
        controllers: vec![
            controller(1000, "ParaVirtualSCSIController", 0),
            controller(201, "VirtualIDEController", 1),
            controller(15000, "VirtualAHCIController", 0),
        ],
        disks: vec![disk(2000, 1000), disk(3000, 201), disk(16000, 15000)],
        networks: vec![adapter(4000, "Production"), adapter(4001, "Gone")],
    }
}

fn networks() -> Vec<Network> {
    let network = |name: &str, group: Option<(&str, &str)>| Network {
        moref: MoRef::new("Network", name),
        name: name.into(),
        port_group: group.map(|(key, switch)| (key.into(), switch.into())),
    };
    vec![network("VM Network", None), network("Production", Some(("dvportgroup-9", "50 11")))]
}

fn wish(networks: &[Network]) -> Wish<'_> {
    let disks = BTreeMap::from([
        (2000, DiskSource::Existing("[ds] web/one.vmdk".into())),
        (3000, DiskSource::New("[ds] web/two.vmdk".into())),
    ]);
    Wish { folder: "[ds] web/", disks, reachable: networks, ..Wish::default() }
}

fn written(spec: &VmSpec) -> Element {
    let mut writer = XmlWriter::new();
    writer.nest("config", |w| spec.write(w));
    let text = writer.finish().expect("fit").replacen(">", " xmlns:xsi=\"x\">", 1);
    xml::parse(text.as_bytes()).expect("XML")
}

#[test]
fn a_machine_comes_back_with_its_hardware_and_a_new_identity() {
    let networks = networks();
    let spec = VmSpec::build(&config(), &wish(&networks)).expect("a specification");
    let root = written(&spec);
    assert_eq!(root.text_at("name"), Some("web 50%25%2fa"));
    assert_eq!(root.text_at("files.vmPathName"), Some("[ds] web/web 50__a.vmx"));
    assert_eq!(root.text_at("annotation"), Some("<of> & course"));
    assert!(root.child("uuid").is_none() && root.child("instanceUuid").is_none());
    let order: Vec<&str> = root.children.iter().map(|child| &*child.name).collect();
    let at = |name: &str| order.iter().position(|one| *one == name).expect(name);
    let sorted = ["name", "version", "guestId", "annotation", "files", "numCPUs", "memoryMB"];
    assert!(sorted.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{order:?}");
    assert!(at("deviceChange") < at("bootOptions") && at("bootOptions") < at("firmware"));

    let kinds: Vec<&str> =
        root.all("deviceChange").filter_map(|one| Some(one.at("device")?.kind())).collect();
    let [scsi, ahci, e1000] =
        ["ParaVirtualSCSIController", "VirtualAHCIController", "VirtualE1000e"];
    assert_eq!(kinds, [scsi, ahci, "VirtualDisk", "VirtualDisk", e1000, e1000]);
    let changes: Vec<&Element> = root.all("deviceChange").collect();
    assert!(changes[2].child("fileOperation").is_none(), "the file is there already");
    assert_eq!(changes[2].text_at("device.backing.fileName"), Some("[ds] web/one.vmdk"));
    assert_eq!(changes[3].text_at("fileOperation"), Some("create"));
    assert_eq!(changes[3].number_at("device.controllerKey"), Some(201), "the machine's own IDE");
    assert_eq!(changes[4].text_at("device.backing.port.portgroupKey"), Some("dvportgroup-9"));
    assert_eq!(changes[4].bool_at("device.connectable.startConnected"), Some(true));
    assert_eq!(changes[4].text_at("device.addressType"), Some("generated"));
    assert_eq!(changes[5].text_at("device.backing.deviceName"), Some("VM Network"));
    assert_eq!(changes[5].bool_at("device.connectable.startConnected"), Some(false));

    for words in ["virtual TPM", "web.nvram", "new UUIDs", "'Gone'", "Hard disk 16000"] {
        assert!(spec.notes.iter().any(|note| note.contains(words)), "{words}: {:?}", spec.notes);
    }
}

#[test]
fn an_identity_is_kept_when_asked_for_and_networks_are_mapped() {
    let networks = networks();
    let mapped = BTreeMap::from([("Gone".to_owned(), "VM Network".to_owned())]);
    let wish =
        Wish { keep_identity: true, networks: mapped, instance_uuid: Some("n"), ..wish(&networks) };
    let spec = VmSpec::build(&config(), &wish).expect("a specification");
    let root = written(&spec);
    assert_eq!(
        (root.text_at("uuid"), root.text_at("instanceUuid")),
        (Some("b-old"), Some("i-old"))
    );
    let last = root.all("deviceChange").last().expect("an adapter");
    assert_eq!(last.bool_at("device.connectable.startConnected"), Some(true));
    assert_eq!(last.text_at("device.addressType"), Some("manual"));
    assert_eq!(last.text_at("device.macAddress"), Some("00:50:56:01:02:03"));
    assert!(!spec.notes.iter().any(|note| note.contains("new UUIDs") || note.contains("Gone")));
    assert_eq!(
        [mac_kind("00:50:56:40:00:00"), mac_kind("x"), mac_kind("00:50:56:é")],
        ["assigned"; 3]
    );
}

#[test]
fn a_hostile_configuration_makes_no_elements_and_no_paths() {
    let networks = networks();
    let mut bad = config();
    bad.controllers[0].model = "x\"><injected/>".into();
    bad.networks[0].model = "\"/><injected/>".into();
    bad.guest_id = "</guestId><injected/>".into();
    let spec = VmSpec::build(&bad, &wish(&networks)).expect("a specification");
    let root = written(&spec);
    let kinds: Vec<&str> =
        root.all("deviceChange").filter_map(|one| Some(one.at("device")?.kind())).collect();
    assert_eq!((kinds[0], kinds[4]), ("VirtualLsiLogicController", "VirtualVmxnet3"));
    assert!(root.child("injected").is_none());
    assert_eq!(file_name("../../etc"), "_._.._etc");
    let refused = |change: &dyn Fn(&mut VmConfig)| {
        let mut bad = config();
        change(&mut bad);
        VmSpec::build(&bad, &wish(&networks)).expect_err("unusable")
    };
    assert!(matches!(refused(&|c| c.format = 2), SpecError::Format { format: 2, .. }));
    for change in [
        &(|c: &mut VmConfig| c.cpus = 0) as &dyn Fn(&mut VmConfig),
        &|c| c.cores_per_socket = 3,
        &|c| c.firmware = "coreboot".into(),
        &|c| c.name = "x".repeat(81),
        &|c| c.disks[0].controller_key = 7,
    ] {
        assert!(matches!(refused(change), SpecError::Unusable { .. }));
    }
}
