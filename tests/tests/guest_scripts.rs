//! Scripts in guests: run, bounded, terminated, and gone again whatever happens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_control::application::{Family, Script, ScriptError, ScriptRun, run};
use gantry_control::vcenter::{Guest, GuestError, GuestLogin, Secret, VCenter, VmRef};
use gantry_sim::requests::{Phase, Then};
use gantry_tests::simulated::Simulated;

const SITE: &str = r#"
guest_users = { backup = "let me in" }
[[datacenter]]
name = "DC0"
hosts = ["esx0.example"]
[[datacenter.datastore]]
name = "ds0"
[[vm]]
name = "db0"
disk = [{ size_mib = 4 }]
[[vm]]
name = "bare0"
tools = false
disk = [{ size_mib = 4 }]
[[vm]]
name = "off0"
on = false
disk = [{ size_mib = 4 }]
"#;

fn login(password: &str) -> GuestLogin {
    GuestLogin { user: "backup".into(), password: Secret::new(password) }
}

fn script(text: &str) -> ScriptRun {
    let content = format!("#!/bin/sh\n{text}\n").into();
    ScriptRun::new(Script::Upload { name: "freeze.sh".into(), content }, login("let me in"))
}

/// Asserts that the folder of every script that ran is gone.
async fn nothing_is_left(simulated: &Simulated, vcenter: &VCenter, vm: &VmRef, runs: usize) {
    let guest = Guest::enter(vcenter, vm, login("let me in")).await.expect("a guest");
    let mut seen = 0;
    for process in guest.processes(None).await.expect("processes") {
        let Some(at) = process.command.find("/tmp/gantry-") else { continue };
        seen += 1;
        let folder: String = process.command[at..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || "/-_".contains(*c))
            .collect();
        let folder =
            folder.strip_suffix("/freeze").or(folder.strip_suffix("/output")).unwrap_or(&folder);
        for name in ["freeze.sh", "output.txt"] {
            let path = format!("{folder}/{name}");
            assert_eq!(simulated.sim.guest_file(&vm.name, &path), None, "{path}");
        }
        assert!(process.exit_code.is_some(), "it still runs: {process:?}");
    }
    assert_eq!(seen, runs, "each script was a process");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_runs_and_leaves_nothing() {
    let simulated = Simulated::start(SITE, Duration::from_millis(5)).await;
    let vcenter = simulated.vcenter();
    let vm = simulated.machine(&vcenter, "db0").await;
    let mut asked = script("echo frozen \"$1\"\nexit 3");
    asked.arguments = vec!["it's now".into()];
    let end = run(&vcenter, &vm, Family::Posix, asked, None).await.expect("it ends");
    assert_eq!((end.exit_code, end.output.as_str()), (3, "frozen it's now\n"), "{end:?}");
    assert!(end.failure().is_some_and(|why| why.contains("exit code 3")) && end.remarks.is_empty());

    let long = "x".repeat(100_000);
    let end = run(&vcenter, &vm, Family::Posix, script(&format!("echo {long}")), None).await;
    let end = end.expect("it ends");
    assert!(end.is_output_cut && end.output.len() == 64 << 10, "{}", end.output.len());

    let installed = Script::Installed { path: "/bin/echo".into() };
    let mut asked = ScriptRun::new(installed, login("let me in"));
    asked.arguments = vec!["agent".into()];
    let end = run(&vcenter, &vm, Family::Posix, asked, None).await.expect("it ends");
    assert_eq!((end.exit_code, end.output.as_str()), (0, "agent\n"));
    nothing_is_left(&simulated, &vcenter, &vm, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_hangs_is_terminated_by_time_or_by_cancelling() {
    let simulated = Simulated::start(SITE, Duration::from_millis(5)).await;
    let vcenter = simulated.vcenter();
    let vm = simulated.machine(&vcenter, "db0").await;
    let mut asked = script("echo half\nhang");
    asked.timeout = Duration::from_millis(300);
    let error = run(&vcenter, &vm, Family::Posix, asked, None).await.expect_err("it hangs");
    assert!(matches!(&error, ScriptError::TimedOut { output, .. } if output == "half"), "{error}");
    let (cancel, watched) = tokio::sync::watch::channel(false);
    let later = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.send(true).expect("it listens");
    };
    let ran = run(&vcenter, &vm, Family::Posix, script("hang"), Some(watched));
    let (ran, ()) = tokio::join!(ran, later);
    assert!(matches!(ran, Err(ScriptError::Cancelled { .. })), "{ran:?}");
    // Whoever asked no longer waits: it ends all the same.
    let mut asked = script("hang");
    asked.timeout = Duration::from_millis(500);
    let dropped = run(&vcenter, &vm, Family::Posix, asked, None);
    assert!(tokio::time::timeout(Duration::from_millis(250), dropped).await.is_err());
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    nothing_is_left(&simulated, &vcenter, &vm, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_does_not_lose_the_script() {
    let simulated = Simulated::start(SITE, Duration::from_millis(5)).await;
    let vcenter = simulated.vcenter();
    let vm = simulated.machine(&vcenter, "db0").await;
    let cut = AtomicBool::new(false);
    simulated.sim.on_request(move |seen| {
        let is_it = seen.method == "StartProgramInGuest" && seen.phase == Phase::Acted;
        if is_it && !cut.swap(true, Ordering::Relaxed) { Then::Cut } else { Then::GoOn }
    });
    let end = run(&vcenter, &vm, Family::Posix, script("echo once"), None).await.expect("it ends");
    assert_eq!((end.exit_code, end.output.as_str()), (0, "once\n"));
    assert_eq!(simulated.sim.requests().methods["StartProgramInGuest"], 1, "not started twice");
    nothing_is_left(&simulated, &vcenter, &vm, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_told_from_tools_that_do_not_run() {
    let simulated = Simulated::start(SITE, Duration::from_millis(5)).await;
    let vcenter = simulated.vcenter();
    let enter = async |name: &str, password: &str| {
        let vm = simulated.machine(&vcenter, name).await;
        Guest::enter(&vcenter, &vm, login(password)).await.expect_err("refused")
    };
    let wrong = enter("db0", "hunter2").await;
    assert!(matches!(wrong, GuestError::WrongCredentials { .. }), "{wrong}");
    assert!(!format!("{wrong} {wrong:?}").contains("hunter2"));
    let bare = enter("bare0", "let me in").await;
    assert!(matches!(bare, GuestError::ToolsNotRunning { .. }), "{bare}");
    let off = enter("off0", "let me in").await;
    assert!(matches!(off, GuestError::ToolsNotRunning { .. }), "{off}");
    let vm = simulated.machine(&vcenter, "db0").await;
    let guest = Guest::enter(&vcenter, &vm, login("let me in")).await.expect("a guest");
    let missing = guest.download("/tmp/none", 10).await.expect_err("no file");
    assert!(matches!(missing, GuestError::Refused { .. }), "{missing}");
}
