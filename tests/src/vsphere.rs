//! A simulated vCenter in this process, `gantry` against it, and what each disk really held.
//!
//! In: an inventory (TOML), settings of the configuration file. Out: sessions' reports, restored
//! disks compared with the disk at the instant of the snapshot, as the simulator's disk engine saw
//! it, while guests go on writing. Everything is in one private folder and gone with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gantry_sim::launch::launch;
use gantry_sim::sim::{Options, Password, Sim};
use gantry_sim::site::inventory;
use gantry_sim::storage::{DatastorePath, DiskId, SnapshotId};
use serde_json::Value;

use crate::program::{Outcome, Running, control, mover};
use crate::scratch::Scratch;

/// Of the simulator's administrator.
pub const PASSWORD: &str = "correct horse";

/// A vCenter, a repository, and what `gantry` needs to know of both.
#[derive(Debug)]
pub struct Sphere {
    /// The simulator.
    pub sim: Arc<Sim>,
    /// Everything of the scenario.
    pub scratch: Scratch,
    restores: AtomicU64,
    // Last: the simulator's tasks end with it.
    _runtime: tokio::runtime::Runtime,
}

/// What a session said, and when its snapshot was.
#[derive(Debug)]
pub struct Session {
    /// Its report.
    pub report: Value,
    /// The snapshot it read from.
    pub snapshot: Option<SnapshotId>,
    /// How the program ended.
    pub outcome: Outcome,
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.expect("writable"), text.as_bytes()).expect("writable");
}

impl Session {
    /// The restore point.
    #[track_caller]
    pub fn point(&self) -> &str {
        self.report["point"].as_str().unwrap_or_else(|| panic!("no point: {:#}", self.report))
    }

    /// Asserts how it ended: `success`, `warning`, `failed`.
    #[track_caller]
    pub fn ended(&self, result: &str) {
        assert_eq!(self.report["result"], result, "{:#}\n{}", self.report, self.outcome.err);
    }

    /// Asserts that the log has a line with all of these words.
    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        let lines = self.report["log"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let fits = |line: &str| words.iter().all(|word| line.contains(word));
        assert!(lines.clone().any(fits), "no line says {words:?}: {:#}", self.report["log"]);
    }

    /// A number of the mover's report.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.report["mover"][field].as_u64().unwrap_or_else(|| panic!("{field}: {:#}", self.report))
    }
}

impl Sphere {
    /// Starts the simulator with this inventory, makes a repository.
    pub fn new(inventory_text: &str, seed: u64) -> Sphere {
        let scratch = Scratch::new();
        let file = scratch.write("inventory.toml", inventory_text);
        let options = Options {
            password: Password::new(PASSWORD),
            root: scratch.join("datastores"),
            task_time: Duration::from_millis(5),
            seed,
            ..Options::default()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let inventory = inventory::read(Some(&file)).expect("the inventory");
        let sim = runtime.block_on(launch(options, &inventory, 0)).expect("the simulator");
        let sphere = Sphere { sim, scratch, restores: AtomicU64::new(0), _runtime: runtime };
        sphere.program(mover(), &["repo", "init", &sphere.repository()]).ok();
        sphere
    }

    fn repository(&self) -> String {
        self.scratch.join("repository").display().to_string()
    }

    fn program(&self, program: PathBuf, arguments: &[&str]) -> Outcome {
        Running::start(self.scratch.path(), Command::new(program).args(arguments)).wait()
    }

    /// The folder of a datastore, as a proxy mounts it.
    pub fn datastore(&self, name: &str) -> PathBuf {
        self.scratch.join("datastores").join(name)
    }

    /// Where the disks that a proxy VM was given appear.
    pub fn devices(&self, proxy: &str) -> PathBuf {
        self.scratch.join("datastores/.proxies").join(proxy).join("by-uuid")
    }

    /// Writes the configuration file; `proxy` and `backup` are the insides of those tables.
    pub fn config(&self, proxy: &str, backup: &str) -> PathBuf {
        let password = self.scratch.join("password");
        write_private(&password, PASSWORD);
        let address = self.sim.vcenter().expect("it listens");
        let thumbprint = self.sim.lock().endpoints[0].thumbprint_sha256.clone();
        let text = format!(
            "state = {:?}\nmover = {:?}\n[vcenter]\nurl = \"https://{address}\"\n\
             user = \"administrator@vsphere.local\"\npassword_file = {password:?}\n\
             thumbprint = \"{thumbprint}\"\n[repository]\naddress = {:?}\n\
             [proxy]\n{proxy}\n[backup]\nremoval_pauses_seconds = [0, 0, 0]\n{backup}\n",
            self.scratch.join("state"),
            mover(),
            self.repository(),
        );
        self.scratch.write("gantry.toml", text)
    }

    /// `gantry ARGUMENTS --config CONFIG --json`, not yet waited for.
    pub fn start(&self, config: &Path, arguments: &[&str]) -> Running {
        let mut command = Command::new(control());
        command.args(arguments).arg("--json").arg("--config").arg(config);
        Running::start(self.scratch.path(), &mut command)
    }

    /// Backs one machine up.
    pub fn backup(&self, config: &Path, vm: &str, options: &[&str]) -> Session {
        let mut arguments = vec!["vm", "backup", vm];
        arguments.extend(options);
        let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut snapshot = None;
        let outcome = std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                let mut last = None;
                while !stop.load(Ordering::Relaxed) {
                    last = self.sim.storage.snapshots().into_iter().max().max(last);
                    seen.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(3));
                }
                last
            });
            let outcome = self.start(config, &arguments).wait();
            stop.store(true, Ordering::Relaxed);
            snapshot = looker.join().expect("it only looks");
            outcome
        });
        let report = outcome.json_or_null().get_mut(0).map(Value::take).unwrap_or_default();
        Session { report, snapshot, outcome }
    }

    /// The engine's disk of a descriptor, such as `[vmfs0] web/web.vmdk`.
    pub fn disk(&self, file: &str) -> DiskId {
        let path: DatastorePath = file.parse().expect("a datastore path");
        self.sim.storage.find_disk(&path).unwrap_or_else(|| panic!("no disk {file}"))
    }

    /// Remembers what this disk holds at every snapshot from now on.
    pub fn watch(&self, file: &str) -> DiskId {
        let disk = self.disk(file);
        self.sim.storage.watch(disk).expect("it can be watched");
        disk
    }

    /// Restores a disk of a session's point.
    #[track_caller]
    pub fn restore(&self, vm: &str, session: &Session, disk: usize) -> PathBuf {
        self.restore_point(vm, session.point(), disk)
    }

    #[track_caller]
    fn restore_point(&self, vm: &str, point: &str, disk: usize) -> PathBuf {
        let number = self.restores.fetch_add(1, Ordering::Relaxed);
        let to = self.scratch.join(format!("restored-{number}.raw"));
        let (to_text, disk) = (to.display().to_string(), disk.to_string());
        let repository = self.repository();
        let arguments = [
            "restore",
            "--repo",
            &repository,
            "--name",
            vm,
            "--point",
            point,
            "--disk",
            &disk,
            "--to",
            &to_text,
        ];
        self.program(mover(), &arguments).ok();
        to
    }

    /// Asserts that the restored disk is the disk at the instant of the session's snapshot.
    #[track_caller]
    pub fn comes_back(&self, vm: &str, session: &Session, number: usize, disk: DiskId) {
        let restored = self.restore(&self.point_name(vm), session, number);
        let snapshot = session.snapshot.expect("a snapshot was seen");
        let oracle = self.sim.storage.oracle(snapshot, disk).expect("what it held");
        let image = std::io::BufReader::new(std::fs::File::open(&restored).expect("restored"));
        let differences = oracle.differences(image, 5).expect("readable");
        assert!(differences.is_empty(), "{vm}, disk {number} differs at {differences:?}");
        std::fs::remove_file(&restored).expect("removable");
    }

    /// Asserts that the restored disk is what an idle machine's disk holds.
    #[track_caller]
    pub fn holds_now(&self, vm: &str, point: &str, number: usize, disk: DiskId) {
        let restored = self.restore_point(&self.point_name(vm), point, number);
        let restored = std::fs::read(&restored).expect("restored");
        let mut now = vec![0; restored.len()];
        self.sim.storage.read(disk, 0, &mut now).expect("readable");
        assert!(restored == now, "{vm}, disk {number} differs");
    }

    /// The name under which a machine's points are kept.
    #[track_caller]
    pub fn point_name(&self, vm: &str) -> String {
        let listed = self.program(mover(), &["repo", "list", &self.repository(), "--json"]).ok();
        let listed = listed.json();
        let names = listed.as_array().into_iter().flatten().filter_map(|row| row["name"].as_str());
        let begin = format!("{vm} (");
        let mut found = names.filter(|name| name.starts_with(&begin));
        found.next().unwrap_or_else(|| panic!("no point of {vm}: {listed:#}")).to_owned()
    }

    /// A session's point in full.
    #[track_caller]
    pub fn show(&self, session: &Session) -> Value {
        let arguments = ["repo", "show", &self.repository(), session.point(), "--json"];
        self.program(mover(), &arguments).ok().json()
    }

    /// Asserts that nothing of Gantry is left: no snapshot, no attached disk, no open undo.
    #[track_caller]
    pub fn is_clean(&self, config: &Path) {
        assert_eq!(self.sim.storage.snapshots(), [], "snapshots are left");
        assert!(self.sim.storage.attached().is_empty(), "disks are left attached");
        let said = self.start(config, &["cleanup"]).wait().ok().json();
        assert_eq!(said["open"], 0, "{said:#}");
        let private = self.scratch.join("state/private");
        let left = std::fs::read_dir(&private).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "cookies are left in {}", private.display());
    }
}

/// Two machines with content, one of them with two disks, and a proxy.
pub fn machines(seed: u64) -> Sphere {
    let image = |name: &str, megabytes: u64, seed: u64| {
        let path =
            std::env::temp_dir().join(format!("gantry-{}-{name}-{seed}", std::process::id()));
        crate::images::noise_disk(&path, megabytes << 20, seed);
        path
    };
    let images = [image("a", 24, seed), image("b", 12, seed + 1), image("c", 8, seed + 2)];
    let text = |path: &PathBuf| path.display().to_string();
    let inventory = format!(
        r#"
        name = "vcenter.sim.example"
        guest_users = {{ backup = "let me in" }}
        [[datacenter]]
        name = "DC 0"
        networks = ["VM Network"]
        folders = ["Production"]
        [[datacenter.cluster]]
        name = "Cluster0"
        hosts = ["esx0.sim.example"]
        [[datacenter.datastore]]
        name = "vmfs0"
        [[datacenter.datastore]]
        name = "nfs0"
        kind = "NFS"
        [[vm]]
        name = "web"
        folder = "Production"
        guest_writes_per_second = 200
        disk = [{{ image = "{}" }}, {{ image = "{}", datastore = "nfs0" }}]
        [[vm]]
        name = "idle"
        cbt = true
        disk = [{{ image = "{}" }}]
        [[vm]]
        name = "large"
        cbt = true
        disk = [{{ size_mib = 128 }}]
        [[vm]]
        name = "proxy"
        disk = [{{ size_mib = 4 }}]
        "#,
        text(&images[0]),
        text(&images[1]),
        text(&images[2]),
    );
    let sphere = Sphere::new(&inventory, seed);
    images.iter().for_each(|image| std::fs::remove_file(image).expect("removable"));
    sphere
}
