//! The model: what it takes, what it refuses and what it says then; a randomly damaged job is refused
//! with a field's name or comes back as it was.

use gantry_common::manage::Retention;
use gantry_common::policy::CbtPolicy;
use gantry_common::source::ServerTrust;
use gantry_common::transport_mode::TransportMode;
use serde_json::{Value, json};
use utoipa::PartialSchema;

use super::*;

fn job() -> Job {
    let selection = Selection { patterns: vec!["*".into()], ..Selection::default() };
    Job::new(Id([1; 16]), "nightly", Id([2; 16]), Id([3; 16]), selection)
}

/// A job in which nothing is as usual.
fn full_job() -> Job {
    serde_json::from_value(json!({
        "id": "01".repeat(16), "name": "nightly", "description": "all", "enabled": false,
        "priority": 70, "vcenter": "02".repeat(16), "repository": "03".repeat(16),
        "selection": {
            "patterns": ["web-*"], "folders": ["/DC/vm/Production"], "tags": ["backup=gold"],
            "datastores": ["nfs*"], "exclude_patterns": ["*-test"], "exclude_tags": ["backup=no"],
            "exclude_disks": [{"label": "Hard disk 2", "vm": "db-*"}]
        },
        "proxies": {"kind": "chosen", "proxies": ["04".repeat(16)]},
        "schedule": {"kind": "daily", "at": "22:30", "days": ["monday", "friday"]},
        "time_zone": "Europe/Berlin",
        "window": [{"days": ["monday"], "from": "22:00", "to": "06:00"}],
        "retries": {"count": 1, "pause_seconds": 5},
        "retention": {"days": 7, "points_min": 3, "weekly": 4, "monthly": 0, "yearly": 0},
        "block_size": "4M", "compression": "high",
        "transport": {"modes": ["hotadd", "nbd"], "failover": false},
        "rate_bytes_per_second": 1000,
        "cbt": {"on_full": "fail", "enable": false, "audit_percent": 0.5},
        "active_full": {"kind": "monthly", "day": 1}, "quiesce": "fall_back",
        "application": {
            "enabled": true, "policy": "ignore", "credential": "05".repeat(16),
            "pre_freeze": {"source": {"kind": "upload", "linux": "sync\n"}},
            "vm_credentials": [{"vm": "db-*", "credential": "06".repeat(16)}]
        },
        "snapshots_per_datastore": 2
    }))
    .unwrap()
}

#[test]
fn a_job_needs_little_and_its_defaults_are_those_of_new() {
    let little = json!({
        "id": "01".repeat(16), "name": "nightly", "vcenter": "02".repeat(16),
        "repository": "03".repeat(16), "selection": {"patterns": ["*"]}
    });
    let read: Job = serde_json::from_value(little).unwrap();
    assert_eq!(read, job());
    assert_eq!(read.validate(), Ok(()));
    assert_eq!(read.retries, Retries { count: 3, pause_seconds: 600 });
    assert_eq!((read.cbt.on_full, read.cbt.audit_per_million()), (CbtPolicy::Warn, Some(1000)));
    let full = full_job();
    assert_eq!(full.validate(), Ok(()));
    assert_eq!(full.transport.modes, [TransportMode::Hotadd, TransportMode::Nbd]);
    assert_eq!(full.application.credentials().count(), 2);
    assert_eq!(full.application.pre_freeze.as_ref().unwrap().timeout_seconds, 600);
    let back: Job = serde_json::from_str(&serde_json::to_string(&full).unwrap()).unwrap();
    assert_eq!(back, full);
}

#[test]
fn what_is_wrong_with_a_job_is_said_by_field() {
    type Change = fn(&mut Job);
    let cases: [(&str, Change); 22] = [
        ("name", |job| job.name.clear()),
        ("name", |job| job.name = " x".into()),
        ("name", |job| job.name = "a\nb".into()),
        ("priority", |job| job.priority = 101),
        ("selection.patterns", |job| job.selection.patterns.clear()),
        ("selection.tags[0]", |job| job.selection.tags = vec!["gold".into()]),
        ("selection.exclude_disks[0]", |job| {
            job.selection.exclude_disks = vec![DiskExclusion::default()];
        }),
        ("proxies.proxies", |job| job.proxies = ProxyChoice::Chosen { proxies: vec![] }),
        ("proxies.proxies", |job| {
            job.proxies = ProxyChoice::Chosen { proxies: vec![Id([4; 16]), Id([4; 16])] };
        }),
        ("schedule.minutes", |job| job.schedule = Schedule::Periodic { minutes: 0 }),
        ("schedule.text", |job| job.schedule = Schedule::Cron { text: "* * * *".into() }),
        ("schedule.job", |job| job.schedule = Schedule::After { job: job.id }),
        ("time_zone", |job| job.time_zone = "../etc".into()),
        ("window[0].days", |job| {
            let at = TimeOfDay::default();
            let days = vec![Weekday::Monday, Weekday::Monday];
            job.window = WeekWindows(vec![TimeRange { days, from: at, to: at }]);
        }),
        ("retries.count", |job| job.retries.count = 101),
        ("retention", |job| job.retention = Some(Retention::default())),
        ("transport.modes", |job| job.transport.modes = vec![TransportMode::Nbd; 2]),
        ("rate_bytes_per_second", |job| job.rate_bytes_per_second = Some(0)),
        ("cbt.audit_percent", |job| job.cbt.audit_percent = f64::NAN),
        ("active_full.days", |job| job.active_full = ActiveFull::Weekly { days: vec![] }),
        ("application.credential", |job| {
            let source = ScriptSource::Installed { path: "/opt/freeze".into() };
            let script = GuestScript { source, arguments: String::new(), timeout_seconds: 1 };
            job.application.enabled = true;
            job.application.pre_freeze = Some(script);
        }),
        ("snapshots_per_datastore", |job| job.snapshots_per_datastore = 0),
    ];
    for (field, change) in cases {
        let mut job = job();
        change(&mut job);
        let found = job.validate().expect_err(field);
        assert_eq!(found.field, field, "{found}");
        assert!(!found.what.is_empty());
    }
}

#[test]
fn unknown_fields_and_other_spellings_are_refused() {
    for (field, value) in [
        ("nmae", json!("x")),
        ("block_size", json!("3M")),
        ("compression", json!("zip")),
        ("schedule", json!({"kind": "daily", "at": "9:00"})),
        ("schedule", json!({"kind": "daily", "at": "24:01"})),
        ("id", json!("0G".repeat(16))),
        ("id", json!("AB".repeat(16))),
        ("proxies", json!({"kind": "some"})),
    ] {
        let mut text = serde_json::to_value(job()).unwrap();
        text[field] = value;
        assert!(serde_json::from_value::<Job>(text).is_err(), "{field}");
    }
}

/// Puts something odd in the place of one value, wherever it stands.
fn damage(value: &mut Value, random: &mut fastrand::Rng) {
    match value {
        Value::Object(fields) if !fields.is_empty() && random.u8(..8) > 0 => {
            let at = random.usize(..fields.len());
            if let Some((_, inner)) = fields.iter_mut().nth(at) {
                damage(inner, random);
            }
        }
        Value::Array(entries) if !entries.is_empty() && random.u8(..4) > 0 => {
            let at = random.usize(..entries.len());
            damage(&mut entries[at], random);
        }
        other => {
            *other = match (&*other, random.u8(..8)) {
                (_, 0) => Value::Null,
                (_, 1) => json!({"kind": "manual"}),
                (Value::Number(_), 2..6) => json!(random.u64(..200)),
                (Value::Number(_), _) => json!(random.f64() * 1e3),
                (Value::String(_), 2) => json!("x".repeat(random.usize(..20_000))),
                (Value::String(_), 3) => json!(Id([random.u8(..8); 16])),
                (Value::String(_), _) => {
                    json!((0..random.usize(..4)).map(|_| random.char(..)).collect::<String>())
                }
                (Value::Array(_), _) => json!([]),
                (Value::Bool(is), _) => json!(!is),
                (other, _) => other.clone(),
            }
        }
    }
}

#[test]
fn damaged_jobs_are_refused_by_field_or_come_back_as_they_were() {
    let seed = std::env::var("GANTRY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
    println!("seed {seed}; GANTRY_SEED={seed} repeats it");
    let mut random = fastrand::Rng::with_seed(seed);
    let whole = serde_json::to_value(full_job()).unwrap();
    let fields: Vec<String> = whole.as_object().unwrap().keys().cloned().collect();
    let (mut unread, mut invalid, mut valid) = (0, 0, 0);
    for _ in 0..20_000 {
        let mut value = whole.clone();
        (0..random.usize(1..4)).for_each(|_| damage(&mut value, &mut random));
        let Ok(job) = serde_json::from_value::<Job>(value) else {
            unread += 1;
            continue;
        };
        match job.validate() {
            Ok(()) => {
                valid += 1;
                let back = serde_json::from_str(&serde_json::to_string(&job).unwrap()).unwrap();
                assert_eq!(job, back);
            }
            Err(found) => {
                invalid += 1;
                let outer = found.field.split(['.', '[', ' ']).next().unwrap();
                assert!(fields.iter().any(|field| field == outer), "{found}");
            }
        }
    }
    assert!(unread > 1000 && invalid > 1000 && valid > 1000, "{unread} {invalid} {valid}");
}

#[test]
fn windows_pass_midnight_and_weeks() {
    let range = |days: &[Weekday], from: &str, to: &str| TimeRange {
        days: days.to_vec(),
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
    };
    let windows = WeekWindows(vec![
        range(&[Weekday::Sunday], "22:00", "06:00"),
        range(&[Weekday::Wednesday], "12:00", "24:00"),
    ]);
    for (day, minute, open) in [
        (Weekday::Sunday, 22 * 60, true),
        (Weekday::Sunday, 22 * 60 - 1, false),
        (Weekday::Monday, 359, true),
        (Weekday::Monday, 360, false),
        (Weekday::Sunday, 100, false),
        (Weekday::Wednesday, 1439, true),
        (Weekday::Thursday, 0, false),
    ] {
        assert_eq!(windows.is_open(day, minute), open, "{day:?} {minute}");
    }
    assert!(WeekWindows::default().is_open(Weekday::Friday, 1));
    let whole_day = WeekWindows(vec![range(&[Weekday::Monday], "08:00", "08:00")]);
    assert!(whole_day.is_open(Weekday::Tuesday, 479) && !whole_day.is_open(Weekday::Tuesday, 480));
}

#[test]
fn networks_hold_what_they_say() {
    let within = |range: &str, address: &str| {
        range.parse::<NetworkRange>().unwrap().contains(address.parse().unwrap())
    };
    assert!(within("10.1.0.0/16", "10.1.255.3") && !within("10.1.0.0/16", "10.2.0.0"));
    assert!(within("10.1.2.3", "10.1.2.3") && !within("10.1.2.3", "10.1.2.4"));
    assert!(within("0.0.0.0/0", "203.0.113.9") && !within("0.0.0.0/0", "::1"));
    assert!(within("::/0", "fd00::1") && within("fd00::/8", "fdff::1"));
    assert!(within("10.0.0.0/8", "::ffff:10.9.9.9"), "IPv4 in IPv6 form");
    for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/+8", "10.0.0.0/", "host"] {
        assert!(bad.parse::<NetworkRange>().is_err(), "{bad}");
    }
}

#[test]
fn ids_sort_by_time_and_have_one_spelling() {
    let (early, late) = (Id::new(1_000, [255; 10]), Id::new(1_001, [0; 10]));
    assert!(early < late && early.to_string() < late.to_string());
    assert_eq!(late.created_ms(), 1_001);
    assert_eq!(late.to_string().parse(), Ok(late));
    assert_ne!(Id::draw(5), Id::draw(5));
    for bad in ["", "ab", &"AB".repeat(16), &"+1".repeat(16), &"é".repeat(16)] {
        assert!(bad.parse::<Id>().is_err(), "{bad}");
    }
}

#[test]
fn addresses_and_certificates_are_checked() {
    let trust = ServerTrust::Thumbprint("ab".repeat(32));
    let (id, name) = (Id([1; 16]), "vc".to_owned());
    let vcenter =
        VCenter { id, name, url: "https://vc.example".into(), user: "backup".into(), trust };
    assert_eq!(vcenter.validate(), Ok(()));
    let text = serde_json::to_string(&vcenter).unwrap();
    assert_eq!(serde_json::from_str::<VCenter>(&text).unwrap(), vcenter);
    for url in ["http://vc.example", "https://", "https://user@host", "https://a b"] {
        let wrong = VCenter { url: url.into(), ..vcenter.clone() };
        assert_eq!(wrong.validate().expect_err(url).field, "url");
    }
    let trust = ServerTrust::Thumbprint("ab".into());
    let wrong = VCenter { trust, ..vcenter.clone() };
    assert_eq!(wrong.validate().unwrap_err().field, "trust.thumbprint");
    let repository: Repository = serde_json::from_value(json!({
        "id": "07".repeat(16), "name": "vault", "mover": "08".repeat(32),
        "address": "gantry://127.0.0.1:9440", "repository_id": "09".repeat(16)
    }))
    .unwrap();
    assert_eq!((repository.validate(), repository.task_slots), (Ok(()), 4));
    for address in ["127.0.0.1:1", "gantry://h", "gantry://:1", "gantry://h:0", "gantry://h:x"] {
        let wrong = Repository { address: address.into(), ..repository.clone() };
        assert_eq!(wrong.validate().expect_err(address).field, "address");
    }
    let proxy: Proxy = serde_json::from_value(json!({
        "id": "07".repeat(16), "name": "p1", "mover": "08".repeat(32), "mounts": {"ds": "/mnt/ds"}
    }))
    .unwrap();
    assert_eq!((proxy.validate(), proxy.slots(8), proxy.slots(0)), (Ok(()), 16, 2));
    let mounts = [("ds".to_owned(), "mnt".to_owned())].into();
    assert!(Proxy { mounts, ..proxy }.validate().unwrap_err().to_string().contains("absolute"));
}

/// The described fields are those that are written.
#[test]
fn schemas_of_foreign_types_tell_their_fields() {
    let schema = serde_json::to_value(schema::RetentionSchema::schema()).unwrap();
    let mut described: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    let value = serde_json::to_value(Retention::default()).unwrap();
    let mut written: Vec<&String> = value.as_object().unwrap().keys().collect();
    described.sort();
    written.sort();
    assert_eq!(described, written);
    let schema = serde_json::to_value(schema::TransportModeSchema::schema()).unwrap();
    assert_eq!(schema["enum"], serde_json::to_value(TransportMode::ALL).unwrap());
    let schema = serde_json::to_value(schema::CbtPolicySchema::schema()).unwrap();
    let all = [CbtPolicy::Continue, CbtPolicy::Warn, CbtPolicy::Fail];
    assert_eq!(schema["enum"], serde_json::to_value(all).unwrap());
    let schema = serde_json::to_string(&schema::ServerTrustSchema::schema()).unwrap();
    assert!(schema.contains("\"thumbprint\"") && schema.contains("\"ca_pem\""), "{schema}");
}
