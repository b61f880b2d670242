//! Requests that were damaged at random, and nonsense, never make the simulator fail inside.
//!
//! In: good requests, changed from a printed seed. Out: every one is answered or refused with a
//! fault; none with a `SystemError`, which stands for a defect of the simulator.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_sim::drill::TaskVerdict;
use gantry_sim::launch::launch;
use gantry_sim::methods::{self, Origin};
use gantry_sim::sim::{Options, Password, Sim};
use gantry_sim::site::inventory;
use gantry_sim::soap;

const DAMAGED_REQUESTS: usize = 3000;

fn envelope(body: &str) -> String {
    format!(
        "<e:Envelope xmlns:e=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\"><e:Body>{body}</e:Body></e:Envelope>"
    )
}

/// Good requests of many kinds; `VM` stands for a machine's id.
const GOOD: &[&str] = &[
    r#"<RetrieveServiceContent xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this></RetrieveServiceContent>"#,
    r#"<Fetch xmlns="urn:vim25"><_this type="VirtualMachine">VM</_this><prop>config</prop></Fetch>"#,
    r#"<CreateContainerView xmlns="urn:vim25"><_this type="ViewManager">ViewManager</_this><container type="Folder">group-d1</container><type>VirtualMachine</type><recursive>true</recursive></CreateContainerView>"#,
    r#"<RetrievePropertiesEx xmlns="urn:vim25"><_this type="PropertyCollector">propertyCollector</_this><specSet><propSet><type>VirtualMachine</type><pathSet>config.hardware.device</pathSet></propSet><objectSet><obj type="Folder">group-d1</obj><selectSet xsi:type="TraversalSpec"><name>f</name><type>Folder</type><path>childEntity</path><selectSet><name>f</name></selectSet><selectSet xsi:type="TraversalSpec"><type>Datacenter</type><path>vmFolder</path><selectSet><name>f</name></selectSet></selectSet></selectSet></objectSet></specSet><options><maxObjects>2</maxObjects></options></RetrievePropertiesEx>"#,
    r#"<WaitForUpdatesEx xmlns="urn:vim25"><_this type="PropertyCollector">propertyCollector</_this><version></version><options><maxWaitSeconds>0</maxWaitSeconds></options></WaitForUpdatesEx>"#,
    r#"<ReconfigVM_Task xmlns="urn:vim25"><_this type="VirtualMachine">VM</_this><spec><changeTrackingEnabled>true</changeTrackingEnabled></spec></ReconfigVM_Task>"#,
    r#"<ReconfigVM_Task xmlns="urn:vim25"><_this type="VirtualMachine">VM</_this><spec><deviceChange><operation>add</operation><device xsi:type="VirtualDisk"><key>-1</key><backing xsi:type="VirtualDiskFlatVer2BackingInfo"><fileName>[vmfs0] web1/web1.vmdk</fileName><diskMode>independent_nonpersistent</diskMode></backing><controllerKey>1000</controllerKey><unitNumber>3</unitNumber><capacityInKB>0</capacityInKB></device></deviceChange></spec></ReconfigVM_Task>"#,
    r#"<QueryChangedDiskAreas xmlns="urn:vim25"><_this type="VirtualMachine">VM</_this><deviceKey>2000</deviceKey><startOffset>0</startOffset><changeId>*</changeId></QueryChangedDiskAreas>"#,
    r#"<CreateSnapshot_Task xmlns="urn:vim25"><_this type="VirtualMachine">VM</_this><name>n</name><memory>false</memory><quiesce>false</quiesce></CreateSnapshot_Task>"#,
    r#"<FindByUuid xmlns="urn:vim25"><_this type="SearchIndex">SearchIndex</_this><uuid>x</uuid><vmSearch>true</vmSearch></FindByUuid>"#,
    r#"<AcquireGenericServiceTicket xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this><spec xsi:type="SessionManagerHttpServiceRequestSpec"><method>httpGet</method><url>https://x/folder/y</url></spec></AcquireGenericServiceTicket>"#,
    r#"<MakeDirectory xmlns="urn:vim25"><_this type="FileManager">FileManager</_this><name>[vmfs0] a/../b</name></MakeDirectory>"#,
];

async fn call(sim: &Arc<Sim>, cookie: Option<Arc<str>>, body: &[u8]) -> (bool, Option<Arc<str>>) {
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let task = TaskVerdict::default();
    let origin = Origin { endpoint: 0, peer, agent: "test".into(), cookie, task, seen: None };
    let Ok(request) = soap::request(body) else { return (false, None) };
    match methods::invoke(sim.clone(), origin, request).await {
        Ok(reply) => {
            let text = soap::answer("X", &reply.value, reply.returns);
            gantry_sim::xml::parse(text.as_bytes()).expect("an answer is well-formed");
            (true, reply.cookie)
        }
        Err(fault) => {
            let text = soap::fault(&fault);
            gantry_sim::xml::parse(text.as_bytes()).expect("a fault is well-formed");
            assert_ne!(fault.detail.ty, "SystemError", "{}", String::from_utf8_lossy(body));
            (false, None)
        }
    }
}

fn damage(random: &mut fastrand::Rng, good: &str) -> Vec<u8> {
    const WORDS: &[&str] = &[
        "-1",
        "99999999999999999999",
        "2147483648",
        "true",
        "",
        "&#0;",
        "[x] ../y",
        "/",
        "*",
        "ServiceInstance",
        "VirtualMachine",
        "Folder",
        "ArrayOfString",
        "xsd:long",
        "[vmfs0] /",
    ];
    let mut text = good.to_owned();
    for _ in 0..random.usize(1..4) {
        // Replace what stands between two marks: an element's text, an attribute, a name.
        let marks: Vec<usize> =
            text.char_indices().filter(|(_, c)| "<>\"".contains(*c)).map(|(at, _)| at).collect();
        if marks.len() < 2 {
            break;
        }
        let at = random.usize(..marks.len() - 1);
        let (start, end) = (marks[at] + 1, marks[at + 1]);
        match random.u8(..3) {
            0 => text.replace_range(start..end, random.choice(WORDS).expect("words")),
            1 => text.replace_range(start..end, ""),
            _ => {
                let twice = text[start..end].to_owned();
                text.insert_str(end, &twice);
            }
        }
    }
    text.into_bytes()
}

#[tokio::test]
async fn damaged_requests_are_refused_and_nothing_breaks() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let root = tempfile::tempdir().expect("a folder");
    let options = Options {
        password: Password::new("p"),
        root: root.path().to_owned(),
        task_time: Duration::from_millis(1),
        ..Options::default()
    };
    let inventory = inventory::read(None).expect("the built-in site");
    let sim = launch(options, &inventory, 0).await.expect("a simulator");
    let login = envelope(
        r#"<Login xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this><userName>administrator@vsphere.local</userName><password>p</password></Login>"#,
    );
    let (_, cookie) = call(&sim, None, login.as_bytes()).await;
    assert!(cookie.is_some(), "the login is good");
    let vm = {
        let state = sim.lock();
        let found = state.endpoints[0].model.entries().find(|e| e.reference.ty == "VirtualMachine");
        found.expect("a machine").reference.id.clone()
    };
    let mut answered = 0;
    for good in GOOD {
        let good = envelope(&good.replace("VM<", &format!("{vm}<")));
        answered += usize::from(call(&sim, cookie.clone(), good.as_bytes()).await.0);
    }
    assert!(answered >= GOOD.len() - 2, "{answered} of the good requests were answered");
    for _ in 0..DAMAGED_REQUESTS {
        let good = random.choice(GOOD).expect("requests").replace("VM<", &format!("{vm}<"));
        let bad = damage(&mut random, &envelope(&good));
        let waiting = Duration::from_secs(10);
        let done = tokio::time::timeout(waiting, call(&sim, cookie.clone(), &bad)).await;
        // A damaged wait without a limit may wait.
        assert!(done.is_ok() || bad.windows(4).any(|w| w == b"Wait"), "a call hung");
    }
    let state = sim.lock();
    for entry in state.endpoints[0].model.entries().filter(|e| e.reference.ty == "Task") {
        let fault = entry.get("info.error.fault").ty();
        assert_ne!(fault, "SystemError", "{:?}", entry.get("info.error"));
    }
}
