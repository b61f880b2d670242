//! Every trap has its reason, and nothing else leads to one.

use super::{
    BaseFacts, CbtFacts, ChangeIdFact, Decision, FullReason, Policy, PolicyOutcome, Tracking,
    decide, tracking,
};
use crate::broker::facts::{SnapshotFacts, VmFacts};
use crate::vcenter::MoRef;

const BASE: &str = "52de8a3c-181c-4c2d-ab12-cd34ef56789a/7";
const NOW: &str = "52de8a3c-181c-4c2d-ab12-cd34ef56789a/9";
const RESET: &str = "52000000-181c-4c2d-ab12-cd34ef56789a/9";
const BACK: &str = "52de8a3c-181c-4c2d-ab12-cd34ef56789a/6";

fn good() -> CbtFacts<'static> {
    CbtFacts {
        capacity_bytes: 200 << 30,
        allocated_bytes: Some(50 << 30),
        hardware_version: 19,
        tracking: Tracking::On,
        change_id: ChangeIdFact::Is(NOW),
        base: Some(BaseFacts { change_id: Some(BASE), capacity_bytes: 200 << 30 }),
        was_reverted: false,
        was_enabled_under_snapshots: false,
        is_full_asked: false,
        distrusted: None,
        host: Some(("8.0.2", "22380479")),
    }
}

fn reason(change: impl FnOnce(&mut CbtFacts<'static>)) -> FullReason {
    let mut facts = good();
    change(&mut facts);
    match decide(&facts) {
        Decision::ExplainedFull { reason, predicted_bytes } => {
            assert_eq!(predicted_bytes, 50 << 30);
            reason
        }
        Decision::Extents { since } => panic!("no doubt: {since}"),
    }
}

#[test]
fn good_facts_lead_to_extents_before_and_after_the_snapshot() {
    for change_id in [ChangeIdFact::Is(NOW), ChangeIdFact::Is(BASE), ChangeIdFact::NotYetKnown] {
        let decision = decide(&CbtFacts { change_id, ..good() });
        let Decision::Extents { since } = decision else { panic!("{decision:?}") };
        assert_eq!(since.as_str(), BASE, "the base's own id is asked with");
    }
}

#[test]
fn every_trap_is_seen() {
    use FullReason as R;
    assert_eq!(reason(|f| f.base = None), R::FirstRun);
    assert!(matches!(reason(|f| f.distrusted = Some("audit")), R::Distrusted(_)));
    assert_eq!(reason(|f| f.tracking = Tracking::CanTurnOn), R::JustEnabled);
    assert_eq!(reason(|f| f.tracking = Tracking::SnapshotsExist), R::SnapshotsForbidEnabling);
    assert_eq!(reason(|f| f.tracking = Tracking::HardwareTooOld), R::HardwareTooOld(19));
    assert_eq!(reason(|f| f.was_enabled_under_snapshots = true), R::EnabledUnderSnapshots);
    assert_eq!(reason(|f| f.was_reverted = true), R::Reverted);
    assert_eq!(reason(|f| f.change_id = ChangeIdFact::Absent), R::NoChangeId);
    assert!(matches!(reason(|f| f.change_id = ChangeIdFact::Is("x")), R::StrangeChangeId(_)));
    assert_eq!(reason(|f| f.change_id = ChangeIdFact::Is(RESET)), R::TrackerChanged);
    let back = R::SequenceWentBack { base: 7, now: 6 };
    assert_eq!(reason(|f| f.change_id = ChangeIdFact::Is(BACK)), back);
    let base = |change_id, capacity_bytes| Some(BaseFacts { change_id, capacity_bytes });
    assert_eq!(reason(|f| f.base = base(None, 200 << 30)), R::NoBaseChangeId);
    let strange = reason(|f| f.base = base(Some("*"), 200 << 30));
    assert_eq!(
        strange,
        R::StrangeBaseChangeId("*".into()),
        "a '*' would ask for what is allocated"
    );
    let changed = reason(|f| f.base = base(Some(BASE), 100 << 30));
    assert!(matches!(changed, R::CapacityChanged { .. }));
}

#[test]
fn known_bad_builds_are_not_trusted() {
    let bad = |version: &'static str, build: &'static str| {
        let decision = decide(&CbtFacts { host: Some((version, build)), ..good() });
        matches!(decision, Decision::ExplainedFull { reason: FullReason::KnownBadBuild { .. }, .. })
    };
    assert!(bad("5.1.0", "1065491") && bad("5.5.0", "1331820") && bad("6.0.0", "2494585"));
    assert!(bad("5.5.0", "2143827") && !bad("6.0.0", "3247720") && !bad("6.5.0", "1"));
    let mut small = good();
    small.capacity_bytes = 64 << 30;
    small.base = Some(BaseFacts { change_id: Some(BASE), capacity_bytes: 64 << 30 });
    small.host = Some(("5.1.0", "1"));
    assert!(matches!(decide(&small), Decision::Extents { .. }));
}

#[test]
fn without_allocation_the_whole_disk_is_predicted() {
    let facts = CbtFacts { base: None, allocated_bytes: None, ..good() };
    let Decision::ExplainedFull { predicted_bytes, .. } = decide(&facts) else { panic!() };
    assert_eq!(predicted_bytes, 200 << 30);
}

#[test]
fn policies_speak_only_of_what_was_not_to_be_expected() {
    let unexpected = decide(&CbtFacts { was_reverted: true, ..good() });
    let first = decide(&CbtFacts { base: None, ..good() });
    assert_eq!(unexpected.under(Policy::Continue, "d"), PolicyOutcome::Go);
    assert!(
        matches!(unexpected.under(Policy::Warn, "d"), PolicyOutcome::Warn(t) if t.contains("reverted"))
    );
    assert!(matches!(unexpected.under(Policy::Fail, "d"), PolicyOutcome::Stop(_)));
    for policy in [Policy::Continue, Policy::Warn, Policy::Fail] {
        assert_eq!(first.under(policy, "d"), PolicyOutcome::Go);
        assert_eq!(decide(&good()).under(policy, "d"), PolicyOutcome::Go);
    }
}

#[test]
fn tracking_is_switched_on_only_without_snapshots() {
    let mut vm = VmFacts { hardware_version: 19, ..VmFacts::default() };
    assert_eq!(tracking(&vm, 0), Tracking::CanTurnOn);
    vm.snapshots.push(SnapshotFacts {
        moref: MoRef::new("VirtualMachineSnapshot", "s"),
        name: "by hand".into(),
        description: "".into(),
        created: "".into(),
        parent: None,
        is_current: true,
    });
    assert_eq!(tracking(&vm, 0), Tracking::SnapshotsExist);
    assert_eq!(tracking(&vm, 1), Tracking::CanTurnOn, "our own goes first");
    vm.change_tracking = true;
    assert_eq!(tracking(&vm, 0), Tracking::On);
    let old = VmFacts { hardware_version: 4, ..VmFacts::default() };
    assert_eq!(tracking(&old, 0), Tracking::HardwareTooOld);
}
