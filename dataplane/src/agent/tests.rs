//! The agent against a scripted gantryd over a real link. The work is done by a small shell script in
//! the place of `gantry-mover`, which does what its work says.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use gantry_common::control::{Answer, Command, Question, Report, TaskOutcome, TaskStanding};
use gantry_common::failure::FailureKind;
use gantry_common::ids::TaskId;
use gantry_common::secret::Secret;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;

use super::{Agent, ControlConfig, ProxyConfig};
use crate::transport::{CertificateAuthority, ControlConnection, ControlListener, Identity, Trust};

const YEAR: Duration = Duration::from_secs(365 * 86_400);
const PATIENCE: Duration = Duration::from_secs(10);
const TASK: TaskId = TaskId([7; 16]);

/// In the place of `gantry-mover work`: notes that it began; `hold` works until a file `go` is there,
/// `deaf` does not listen, `rubbish` writes what is no report, `mute` says nothing.
const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$0")
read -r work
echo begun >> "$here/begun"
# What runs in the background reads nothing unless it is given a descriptor of its own, and must
# not keep the output open.
exec 3<&0
case "$work" in
*hold*) (while read -r line; do echo "$line" >> "$here/heard"; done; echo end > "$here/ended") <&3 >/dev/null 2>&1 &
   echo '{"progress":{"disks":[{"label":"d","done_bytes":1,"todo_bytes":2,"read_bytes":3,"sent_bytes":4}]}}'
   while [ ! -e "$here/go" ]; do
     [ -e "$here/ended" ] && { echo '{"failed":{"failure":{"kind":"Source","message":"gone"}}}'; exit 3; }
     sleep 0.02
   done ;;
*rubbish*) echo 'no report'; sleep 60 ;;
*mute*) exit 1 ;;
esac
echo '{"done":{"report":{"kept": [1, 2]}}}'
"#;

struct Site {
    folder: tempfile::TempDir,
    listener: ControlListener,
    mover: Identity,
    agent: Option<JoinHandle<()>>,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate().unwrap();
        let certificate = authority.certificate_pem();
        std::fs::write(folder.path().join("authority.pem"), certificate).unwrap();
        let trust = Trust::parse("authority".as_ref(), certificate.as_bytes()).unwrap();
        let daemon = authority.issue("gantryd.example", YEAR).unwrap();
        let listener = ControlListener::bind(([127, 0, 0, 1], 0).into(), &daemon, &trust).unwrap();
        let program = folder.path().join("mover");
        std::fs::write(&program, SCRIPT).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mover = authority.issue("proxy-1", YEAR).unwrap();
        Site { folder, listener, mover, agent: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&mut self, tasks: usize) -> Rc<Agent> {
        let config = ControlConfig {
            address: self.listener.address().to_string(),
            name: "gantryd.example".into(),
            authority: self.path("authority.pem"),
            api: None,
            state: self.path("state"),
            tasks,
        };
        let mover = self.mover.clone();
        let agent = Agent::open(
            config,
            &ProxyConfig::default(),
            mover,
            None,
            (self.path("mover"), self.path("identity.pem")),
        )
        .unwrap();
        self.agent = Some(tokio::task::spawn_local(Rc::clone(&agent).run()));
        agent
    }

    /// The mover's next link, and the tasks of its `Hello`.
    async fn hello(&mut self) -> (ControlConnection, Vec<TaskStanding>) {
        let mut link = timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        let Report::Hello { tasks, facts, .. } = next(&mut link).await else { panic!("no Hello") };
        assert!(facts.private_folder.ends_with("private"));
        let welcome = Command::Welcome { software: "test".into(), now_ms: 0, ticket_key: None };
        link.sender.send(&welcome).await.unwrap();
        (link, tasks)
    }
}

async fn next(link: &mut ControlConnection) -> Report {
    loop {
        let report = timeout(PATIENCE, link.receiver.receive::<Report>()).await.unwrap().unwrap();
        match report.expect("a report") {
            Report::Idle { .. } => {}
            report => return report,
        }
    }
}

/// The next end, progress aside.
async fn end(link: &mut ControlConnection) -> (TaskId, TaskOutcome) {
    loop {
        match next(link).await {
            Report::Ended { task, outcome } => return (task, outcome),
            Report::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn tell(link: &mut ControlConnection, command: Command) {
    link.sender.send(&command).await.unwrap();
}

fn start(task: TaskId, work: &str) -> Command {
    Command::Start { task, work: work.as_bytes().to_vec() }
}

async fn wait_for(path: &Path) -> String {
    let waiting = async {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, waiting).await.expect("a file")
}

fn done() -> TaskOutcome {
    TaskOutcome::Done(b"{\"kept\": [1, 2]}".to_vec())
}

async fn scenario(play: impl AsyncFnOnce(Site)) {
    LocalSet::new().run_until(play(Site::new())).await;
}

#[tokio::test]
async fn started_twice_is_once_rates_reach_it_and_its_credentials_go_with_it() {
    scenario(async |mut site| {
        site.start(8);
        let (mut link, tasks) = site.hello().await;
        assert!(tasks.is_empty());
        let content = Secret::new("a cookie");
        tell(&mut link, Command::SetCredential { task: TASK, name: "cookie".into(), content })
            .await;
        for _ in 0..2 {
            tell(&mut link, start(TASK, "{\n\"hold\": 1\n}")).await;
        }
        let Report::Progress { task, disks } = next(&mut link).await else { panic!() };
        assert_eq!((task, disks[0].read_bytes), (TASK, 3));
        let cookie = site.path("state/private").join(TASK.to_string()).join("cookie");
        assert_eq!(std::fs::read_to_string(&cookie).unwrap(), "a cookie");
        tell(&mut link, Command::SetRate { task: TASK, bytes_per_second: Some(7) }).await;
        assert_eq!(wait_for(&site.path("heard")).await, "{\"set_rate\":7}\n");
        std::fs::write(site.path("go"), "").unwrap();
        assert_eq!(end(&mut link).await, (TASK, done()));
        tell(&mut link, start(TASK, "{}")).await;
        assert_eq!(end(&mut link).await, (TASK, done()), "told again, not begun again");
        assert_eq!(std::fs::read_to_string(site.path("begun")).unwrap(), "begun\n");
        for _ in 0..2 {
            tell(&mut link, Command::Forget { task: TASK }).await;
        }
        tell(&mut link, Command::Ask { number: 5, question: Question::Facts }).await;
        let answer = next(&mut link).await;
        assert!(matches!(answer, Report::Answer { number: 5, answer: Ok(Answer::Facts(_)), .. }));
        assert!(!cookie.parent().unwrap().exists());
        assert_eq!(std::fs::read_dir(site.path("state/tasks")).unwrap().count(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_task_goes_on_without_gantryd_and_its_end_is_told_until_it_is_forgotten() {
    scenario(async |mut site| {
        site.start(8);
        let (mut link, _) = site.hello().await;
        tell(&mut link, start(TASK, "hold")).await;
        next(&mut link).await;
        drop(link);
        let (link, tasks) = site.hello().await;
        assert_eq!(tasks, [TaskStanding { task: TASK, ended: None }]);
        drop(link);
        std::fs::write(site.path("go"), "").unwrap();
        let record = site.path("state/tasks").join(TASK.to_string());
        while std::fs::read(&record).unwrap()[0] == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for _ in 0..2 {
            let (link, tasks) = site.hello().await;
            assert_eq!(tasks, [TaskStanding { task: TASK, ended: Some(done()) }]);
            drop(link);
        }
        let (mut link, _) = site.hello().await;
        tell(&mut link, Command::Forget { task: TASK }).await;
        tell(&mut link, Command::Ask { number: 1, question: Question::Facts }).await;
        next(&mut link).await;
        drop(link);
        assert!(site.hello().await.1.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_restarted_agent_tells_what_died_with_it_and_no_credential_is_left() {
    scenario(async |mut site| {
        site.start(8);
        let (mut link, _) = site.hello().await;
        let content = Secret::new("x");
        tell(&mut link, Command::SetCredential { task: TASK, name: "c".into(), content }).await;
        tell(&mut link, start(TASK, "hold")).await;
        next(&mut link).await;
        // The state as a killed agent leaves it: its own end would write the task's.
        let killed = site.path("killed");
        copy_tree(&site.path("state"), &killed);
        let running = site.agent.take().unwrap();
        running.abort();
        drop(link);
        std::fs::rename(site.path("state"), site.path("old")).unwrap();
        std::fs::rename(&killed, site.path("state")).unwrap();
        site.start(8);
        let (_link, tasks) = site.hello().await;
        let [TaskStanding { task: TASK, ended: Some(TaskOutcome::Died(text)) }] = &tasks[..] else {
            panic!("{tasks:?}")
        };
        assert!(text.contains("killed"), "{text}");
        assert_eq!(std::fs::read_dir(site.path("state/private")).unwrap().count(), 0);
        std::fs::write(site.path("go"), "").unwrap();
    })
    .await;
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn stopped_spoilt_and_surplus_tasks_end_as_what_they_are() {
    scenario(async |mut site| {
        site.start(1);
        let (mut link, _) = site.hello().await;
        let [held, surplus, rubbish, mute, unknown] =
            [1, 2, 3, 4, 5].map(|byte| TaskId([byte; 16]));
        tell(&mut link, start(held, "hold")).await;
        tell(&mut link, start(surplus, "{}")).await;
        let (task, outcome) = end(&mut link).await;
        let TaskOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
        assert_eq!((task, failure.kind), (surplus, FailureKind::Network));
        wait_for(&site.path("begun")).await;
        tell(&mut link, Command::Stop { task: held }).await;
        assert_eq!(end(&mut link).await, (held, TaskOutcome::Stopped));
        for (task, work, words) in
            [(rubbish, "rubbish", "no report"), (mute, "mute", "exit status: 1")]
        {
            tell(&mut link, start(task, work)).await;
            let (ended, outcome) = end(&mut link).await;
            let TaskOutcome::Died(text) = outcome else { panic!("{outcome:?}") };
            assert!(ended == task && text.contains(words), "{text}");
        }
        tell(&mut link, Command::Stop { task: unknown }).await;
        assert_eq!(end(&mut link).await, (unknown, TaskOutcome::Stopped));
        let question = Question::Points { name: String::new(), deleted: false };
        tell(&mut link, Command::Ask { number: 9, question }).await;
        let Report::Answer { number: 9, answer: Err(failure), more: false } = next(&mut link).await
        else {
            panic!()
        };
        assert!(failure.message.contains("no repository"));
    })
    .await;
}

#[tokio::test]
async fn a_mover_that_stops_tells_that_its_tasks_died() {
    scenario(async |mut site| {
        let agent = site.start(8);
        let (mut link, _) = site.hello().await;
        tell(&mut link, start(TASK, "hold")).await;
        next(&mut link).await;
        agent.stop();
        let (_, outcome) = end(&mut link).await;
        assert_eq!(outcome, TaskOutcome::Died("the mover was stopped".into()));
        assert_eq!((agent.tasks_running(), agent.has_told_all()), (0, true));
        let late = TaskId([9; 16]);
        tell(&mut link, start(late, "{}")).await;
        let (_, outcome) = end(&mut link).await;
        assert!(
            matches!(outcome, TaskOutcome::Failed(failure) if failure.message.contains("stopping"))
        );
    })
    .await;
}
