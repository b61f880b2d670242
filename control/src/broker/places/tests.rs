//! Places are found by name, and what is ambiguous or missing is refused with what to do.

use super::{Place, PlaceError, Places, Target};
use crate::vcenter::MoRef;

fn moref(text: &str) -> MoRef {
    let (kind, value) = text.split_once(':').expect("kind:value");
    MoRef::new(kind, value)
}

/// Two datacenters, each with a datastore `ds`; in the first a cluster of two hosts and a lone one.
fn places() -> Places {
    let mut places = Places::default();
    let mut add = |what: &str, name: &str, parent: &str| {
        let parent = (!parent.is_empty()).then(|| moref(parent));
        places.all.insert(moref(what), Place { name: name.into(), parent, ..Place::default() });
    };
    add("Folder:root", "Datacenters", "");
    for dc in ["1", "2"] {
        add(&format!("Datacenter:{dc}"), &format!("DC{dc}"), "Folder:root");
        for kind in ["vm", "host", "datastore"] {
            add(&format!("Folder:{kind}{dc}"), kind, &format!("Datacenter:{dc}"));
        }
        add(&format!("Datastore:ds{dc}"), "ds", &format!("Folder:datastore{dc}"));
        add(&format!("Folder:web{dc}"), "a/b", &format!("Folder:vm{dc}"));
    }
    add("ClusterComputeResource:c", "Cluster", "Folder:host1");
    add("ComputeResource:l", "lone", "Folder:host1");
    add("ResourcePool:c", "Resources", "ClusterComputeResource:c");
    add("ResourcePool:l", "Resources", "ComputeResource:l");
    add("ResourcePool:t", "Test", "ResourcePool:c");
    for (host, compute) in [
        ("h1", "ClusterComputeResource:c"),
        ("h2", "ClusterComputeResource:c"),
        ("h0", "ComputeResource:l"),
    ] {
        add(&format!("HostSystem:{host}"), host, compute);
    }
    for (what, root) in [
        ("Datacenter:1", "Folder:vm1"),
        ("Datacenter:2", "Folder:vm2"),
        ("ClusterComputeResource:c", "ResourcePool:c"),
        ("ComputeResource:l", "ResourcePool:l"),
    ] {
        places.all.get_mut(&moref(what)).expect("known").root = Some(moref(root));
    }
    for host in ["h0", "h1", "h2"] {
        let place = places.all.get_mut(&moref(&format!("HostSystem:{host}"))).expect("known");
        place.datastores = vec![moref("Datastore:ds1")];
        place.is_usable = host != "h1";
    }
    places
}

fn target() -> Target {
    Target { folder: Some("/DC1/vm".into()), datastore: "ds".into(), ..Target::default() }
}

#[test]
fn a_machine_is_placed_by_names() {
    let places = places();
    let placed = places.place(&target()).expect("a place");
    assert_eq!((placed.folder, placed.host), (moref("Folder:vm1"), moref("HostSystem:h0")));
    assert_eq!(placed.pool, moref("ResourcePool:l"), "the lone host's own");
    assert!(placed.notes.iter().any(|note| note.contains("h0")), "{:?}", placed.notes);
    let in_cluster = Target { cluster: Some("Cluster".into()), ..target() };
    let placed = places.place(&in_cluster).expect("a place");
    assert_eq!(placed.host, moref("HostSystem:h2"), "h1 is in maintenance");
    for pool in ["Test", "Resources/Test", "/Cluster/Resources/Test"] {
        let asked = Target { pool: Some(pool.into()), ..target() };
        let placed = places.place(&asked).expect("a place");
        assert_eq!((placed.pool, placed.host), (moref("ResourcePool:t"), moref("HostSystem:h2")));
    }
    let slashed = Target { folder: Some("/DC1/vm/a/b".into()), ..target() };
    assert_eq!(places.place(&slashed).expect("a place").folder, moref("Folder:web1"));
    let datacenter = Target { folder: Some("/DC1/".into()), ..target() };
    assert_eq!(places.place(&datacenter).expect("a place").folder, moref("Folder:vm1"));
}

#[test]
fn what_is_missing_or_unclear_is_told() {
    let places = places();
    let refused = |target: Target| places.place(&target).expect_err("no place");
    let unclear = refused(Target { folder: None, ..target() });
    assert!(matches!(unclear, PlaceError::Ambiguous { what: "datastore", .. }), "{unclear}");
    let missing = refused(Target { folder: Some("/DC1/vm/x".into()), ..target() }).to_string();
    assert!(missing.contains("/DC1/vm/a/b"), "{missing}");
    let pool = refused(Target { pool: Some("Resources".into()), ..target() });
    assert!(matches!(pool, PlaceError::Ambiguous { what: "resource pool", .. }), "{pool}");
    let host = refused(Target { host: Some("h1".into()), ..target() });
    assert!(matches!(host, PlaceError::NoHost { .. }), "{host}");
    let other = refused(Target { folder: Some("/DC2/vm".into()), ..target() });
    assert!(matches!(other, PlaceError::NoHost { .. }), "no host of DC2: {other}");
    let wrong =
        refused(Target { host: Some("h0".into()), cluster: Some("Cluster".into()), ..target() });
    assert!(matches!(wrong, PlaceError::NoHost { .. }), "{wrong}");
}

#[test]
fn parents_in_a_ring_end() {
    let mut places = places();
    places.all.get_mut(&moref("Folder:root")).expect("known").parent = Some(moref("Folder:vm1"));
    places.all.get_mut(&moref("Datacenter:1")).expect("known").parent = Some(moref("Folder:vm1"));
    assert!(places.place(&target()).is_err());
}
