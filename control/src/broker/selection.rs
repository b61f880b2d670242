//! Which machines and disks a job backs up, and for every one why. Pure.
//!
//! In: the inventory and a job's [`Selection`]. Out: every machine with a verdict; for those that are
//! in, every disk with a verdict; rules that met nothing. Patterns know `*` and `?` and ignore case,
//! as vCenter's own search does.

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::cache::Cache;
use super::facts::{DiskFacts, VmFacts};
use crate::snapshots::eligible::{disk_obstacle, vm_obstacle};
use crate::vcenter::{MoRef, VmRef};

/// A set of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Of this name, or of names that match this pattern.
    Name(String),
    /// With this instance UUID: survives a new name.
    InstanceUuid(String),
    /// In this folder or below it, as a path such as `/DC0/vm/Web`.
    Folder(String),
    /// With a disk on this datastore.
    Datastore(String),
    /// On this host.
    Host(String),
    /// In this cluster.
    Cluster(String),
    /// With a custom attribute whose value matches a pattern.
    Attribute {
        /// The attribute.
        name: String,
        /// Pattern of its value.
        value: String,
    },
}

/// A set of disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRule {
    /// Whose label matches, such as `Hard disk 2`.
    Label(String),
    /// At this position, such as `SCSI (0:1)`.
    Position(String),
    /// On this datastore.
    Datastore(String),
    /// Independent ones: they cannot be backed up; saying so keeps the log quiet.
    Independent,
}

/// What a job backs up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// A machine that fits any of these is in …
    pub include: Vec<Rule>,
    /// … unless it fits any of these.
    pub exclude: Vec<Rule>,
    /// Disks that are left out.
    pub exclude_disks: Vec<DiskRule>,
}

/// In or out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is backed up.
    In {
        /// The rule that asks for it, in words.
        why: String,
    },
    /// The job does not ask for it, or asks to leave it out.
    Excluded {
        /// In words.
        why: String,
    },
    /// The job asks for it, and it cannot be done.
    Impossible {
        /// In words, with what to do.
        why: String,
    },
}

impl Verdict {
    /// Whether it is backed up.
    pub fn is_in(&self) -> bool {
        matches!(self, Verdict::In { .. })
    }
}

/// A disk with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedDisk {
    /// Device key.
    pub key: i32,
    /// Label.
    pub label: String,
    /// Where it is attached.
    pub position: String,
    /// In or out.
    pub verdict: Verdict,
}

/// A machine with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedVm {
    /// Which.
    pub vm: VmRef,
    /// Its instance UUID.
    pub instance_uuid: String,
    /// In or out.
    pub verdict: Verdict,
    /// Its disks; none for a machine that is out.
    pub disks: Vec<SelectedDisk>,
}

/// What a selection comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selected {
    /// Every machine, by name.
    pub vms: Vec<SelectedVm>,
    /// Rules that no machine fits, in words: likely a mistake.
    pub unmatched: Vec<String>,
}

/// Judges every machine of an inventory.
pub fn select(cache: &Cache, selection: &Selection) -> Selected {
    let mut used = vec![false; selection.include.len()];
    let mut vms: Vec<SelectedVm> = Vec::new();
    for (moref, facts) in cache.vms() {
        let mut asked = None;
        for (at, rule) in selection.include.iter().enumerate() {
            if fits(cache, moref, facts, rule) {
                used[at] = true;
                asked = asked.or(Some(rule));
            }
        }
        let unwanted = selection.exclude.iter().find(|rule| fits(cache, moref, facts, rule));
        let verdict = match (asked, unwanted, vm_obstacle(facts)) {
            (None, ..) => Verdict::Excluded { why: "no rule of the job asks for it".into() },
            (_, Some(rule), _) => Verdict::Excluded { why: format!("excluded by {rule}") },
            (_, _, Some(obstacle)) => Verdict::Impossible { why: obstacle.to_string() },
            (Some(rule), None, None) => Verdict::In { why: rule.to_string() },
        };
        let disks = if verdict.is_in() { judge_disks(facts, selection) } else { Vec::new() };
        vms.push(SelectedVm {
            vm: facts.vm_ref(moref),
            instance_uuid: facts.instance_uuid.to_string(),
            verdict,
            disks,
        });
    }
    vms.sort_by(|one, other| (&one.vm.name, &one.vm.moref).cmp(&(&other.vm.name, &other.vm.moref)));
    let unused = selection.include.iter().zip(used).filter(|(_, used)| !used);
    Selected { vms, unmatched: unused.map(|(rule, _)| rule.to_string()).collect() }
}

/// Judges every disk of a machine.
pub fn judge_disks(facts: &VmFacts, selection: &Selection) -> Vec<SelectedDisk> {
    let judge = |disk: &DiskFacts| {
        let unwanted = selection.exclude_disks.iter().find(|rule| disk_fits(facts, disk, rule));
        let verdict = match (unwanted, disk_obstacle(facts, disk)) {
            (Some(rule), _) => Verdict::Excluded { why: format!("excluded by {rule}") },
            (None, Some(obstacle)) => Verdict::Impossible { why: obstacle.to_string() },
            (None, None) => Verdict::In { why: "its machine is selected".into() },
        };
        SelectedDisk {
            key: disk.key,
            label: disk.label.to_string(),
            position: facts.position(disk),
            verdict,
        }
    };
    facts.disks.values().map(judge).collect()
}

fn matches(pattern: &str, text: &str) -> bool {
    WildMatch::new_case_insensitive(pattern).matches(text)
}

fn fits(cache: &Cache, moref: &MoRef, facts: &VmFacts, rule: &Rule) -> bool {
    match rule {
        Rule::Name(pattern) => matches(pattern, &facts.name),
        Rule::InstanceUuid(uuid) => facts.instance_uuid.eq_ignore_ascii_case(uuid),
        Rule::Folder(path) => {
            let (path, folder) = (path.trim_end_matches('/'), cache.folder_of(facts));
            folder.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Rule::Datastore(name) => {
            let by_disk = facts.disks.values().any(|disk| matches(name, disk.datastore_name()));
            let named = |one: &MoRef| cache.datastore(one).is_some_and(|d| matches(name, &d.name));
            by_disk || facts.datastores.iter().any(named)
        }
        Rule::Host(name) => {
            let host = facts.host.as_ref().and_then(|host| cache.host(host));
            host.is_some_and(|host| matches(name, &host.name))
        }
        Rule::Cluster(name) => {
            let cluster = facts.host.as_ref().and_then(|host| cache.cluster_of(host));
            cluster.is_some_and(|cluster| matches(name, cluster))
        }
        Rule::Attribute { name, value } => {
            debug_assert!(cache.vm(moref).is_some());
            cache
                .attributes_of(facts)
                .any(|(n, v)| n.eq_ignore_ascii_case(name) && matches(value, v))
        }
    }
}

fn disk_fits(facts: &VmFacts, disk: &DiskFacts, rule: &DiskRule) -> bool {
    match rule {
        DiskRule::Label(pattern) => matches(pattern, &disk.label),
        DiskRule::Position(position) => {
            let bare = |text: &str| -> String {
                text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
            };
            bare(position) == bare(&facts.position(disk))
        }
        DiskRule::Datastore(name) => matches(name, disk.datastore_name()),
        DiskRule::Independent => disk.mode.is_independent(),
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rule::Name(name) => write!(f, "name '{name}'"),
            Rule::InstanceUuid(uuid) => write!(f, "instance UUID {uuid}"),
            Rule::Folder(path) => write!(f, "folder '{path}'"),
            Rule::Datastore(name) => write!(f, "datastore '{name}'"),
            Rule::Host(name) => write!(f, "host '{name}'"),
            Rule::Cluster(name) => write!(f, "cluster '{name}'"),
            Rule::Attribute { name, value } => write!(f, "attribute '{name}' = '{value}'"),
        }
    }
}

impl std::fmt::Display for DiskRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DiskRule::Label(pattern) => write!(f, "label '{pattern}'"),
            DiskRule::Position(position) => write!(f, "position {position}"),
            DiskRule::Datastore(name) => write!(f, "datastore '{name}'"),
            DiskRule::Independent => f.write_str("independent disks"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskRule, Rule, Selection, Verdict, fits, judge_disks, matches, select};
    use crate::broker::cache::Cache;
    use crate::broker::devices::tests::DEVICES;
    use crate::vcenter::updates::{Change, ChangeOp, ObjectEvent, ObjectUpdate};
    use crate::vcenter::{Element, MoRef, xml};

    fn cache() -> Cache {
        let mut cache = Cache::new();
        for (number, name) in ["web-1", "web-2", "db[1]", "golden"].into_iter().enumerate() {
            let plain = |text: &str| Element { text: text.into(), ..Element::default() };
            let devices = xml::parse(DEVICES.as_bytes()).expect("XML");
            let changes = [
                ("name", plain(name)),
                ("config.instanceUuid", plain(&format!("uuid-{number}"))),
                ("config.template", plain(if name == "golden" { "true" } else { "false" })),
                ("config.hardware.device", devices),
            ];
            let change = |(path, value): (&str, Element)| Change {
                path: path.into(),
                op: ChangeOp::Assign,
                value: Some(value),
            };
            cache.apply(&ObjectUpdate {
                object: MoRef::new("VirtualMachine", &format!("vm-{number}")),
                event: ObjectEvent::Enter,
                changes: changes.into_iter().map(change).collect(),
                missing: Vec::new(),
            });
        }
        cache
    }

    fn in_names(selection: &Selection) -> Vec<String> {
        let selected = select(&cache(), selection);
        assert_eq!(selected.vms.len(), 4, "every machine has a verdict");
        let chosen = selected.vms.into_iter().filter(|one| one.verdict.is_in());
        chosen.map(|one| one.vm.name).collect()
    }

    fn named(pattern: &str) -> Rule {
        Rule::Name(pattern.into())
    }

    #[test]
    fn machines_are_in_by_rule_and_out_by_rule_or_obstacle() {
        let mut selection = Selection { include: vec![named("WEB-*")], ..Selection::default() };
        assert_eq!(in_names(&selection), ["web-1", "web-2"]);
        selection.exclude.push(named("web-2"));
        assert_eq!(in_names(&selection), ["web-1"]);
        selection.include = vec![named("db[1]"), Rule::InstanceUuid("UUID-1".into())];
        selection.exclude.clear();
        assert_eq!(in_names(&selection), ["db[1]", "web-2"], "brackets are only brackets");
        selection.include = vec![named("*"), named("typo")];
        let selected = select(&cache(), &selection);
        assert_eq!(selected.unmatched, ["name 'typo'"]);
        let golden = selected.vms.iter().find(|one| one.vm.name == "golden").expect("golden");
        assert!(matches!(&golden.verdict, Verdict::Impossible { why } if why.contains("template")));
        assert_eq!(in_names(&Selection::default()), [""; 0]);
        selection.include = vec![Rule::Datastore("fast".into())];
        assert_eq!(in_names(&selection).len(), 3);
    }

    #[test]
    fn folders_match_whole_names() {
        let mut cache = cache();
        let folder = MoRef::new("Folder", "f");
        let moref = MoRef::new("VirtualMachine", "vm-0");
        let reference =
            Element { text: "f".into(), ref_type: Some("Folder".into()), ..Element::default() };
        let set = |object: &MoRef, path: &str, value: Element| ObjectUpdate {
            object: object.clone(),
            event: ObjectEvent::Modify,
            changes: vec![Change { path: path.into(), op: ChangeOp::Assign, value: Some(value) }],
            missing: Vec::new(),
        };
        let name = Element { text: "Web".into(), ..Element::default() };
        cache.apply(&set(&folder, "name", name));
        let parent = Element { text: "x".into(), ..reference.clone() };
        cache.apply(&set(&folder, "parent", parent));
        cache.apply(&set(&moref, "parent", reference));
        let facts = cache.vm(&moref).expect("the machine");
        let in_folder = |path: &str| fits(&cache, &moref, facts, &Rule::Folder(path.into()));
        assert!(in_folder("/Web") && in_folder("/Web/") && in_folder(""));
        assert!(!in_folder("/We") && !in_folder("/Web/Sub"));
        assert!(matches("a?c*", "ABCd") && !matches("a?c", "ac"));
    }

    #[test]
    fn disks_are_out_by_rule_or_obstacle() {
        let cache = cache();
        let facts = cache.vms().next().expect("a machine").1;
        let verdicts = |rules: Vec<DiskRule>| -> Vec<String> {
            let selection = Selection { exclude_disks: rules, ..Selection::default() };
            let kinds = judge_disks(facts, &selection).into_iter().map(|disk| match disk.verdict {
                Verdict::In { .. } => "in".to_owned(),
                Verdict::Excluded { .. } => "excluded".to_owned(),
                Verdict::Impossible { .. } => "impossible".to_owned(),
            });
            kinds.collect()
        };
        assert_eq!(verdicts(vec![]), ["in", "impossible"]);
        assert_eq!(verdicts(vec![DiskRule::Independent]), ["in", "excluded"]);
        assert_eq!(
            verdicts(vec![DiskRule::Position("scsi0:0".into())]),
            ["excluded", "impossible"]
        );
        assert_eq!(verdicts(vec![DiskRule::Label("hard disk ?".into())]), ["excluded"; 2]);
        assert_eq!(verdicts(vec![DiskRule::Datastore("fast".into())])[0], "excluded");
    }
}
