//! The union rule on live ext4: crash-consistent copies of an image under load.
//!
//! A seed chooses how the file system is made and mounted and what is written; several copies are taken
//! while it is ([`Host::copy`]), and nothing is synced for them. For each, what the reader calls free
//! must be free once the journal is replayed, by e2fsck and by the kernel, and what was fsynced must be
//! whole although all of it is overwritten. `GANTRY_SEEDS=50` makes two hundred copies.

#![allow(clippy::unwrap_used)]

mod images;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gantry_guest::ext4::Ext4;
use gantry_guest::{Consistency, Extent, FilterOptions, GuestFs, SnapshotKind, filter_disk};
use images::host::Host;
use images::judge::{bytes, common_bytes, joined, spoil, worth_it};
use images::{Image, Loop, Mount, can, empty, ext4, run};

const TOOLS: [&str; 6] = ["mke2fs", "e2fsck", "dumpe2fs", "mkfs.xfs", "losetup", "fallocate"];
const MIB: u64 = 1 << 20;
const IMAGE_MIB: u64 = 1024;
/// Copies for each seed; of few seeds, so that every test run can afford them, half as many.
const COPIES: u64 = 4;

/// How a seed's file system is made, mounted and used.
#[derive(Debug)]
struct Plan {
    make: Vec<&'static str>,
    mount: &'static str,
    direct: bool,
    writers: u64,
    /// Largest file that is written, in bytes.
    largest: usize,
    pause: Duration,
}

impl Plan {
    fn of(seed: u64, random: &mut fastrand::Rng) -> Plan {
        let mut pick = |of: &[&'static str]| of[random.usize(..of.len())];
        let block = if seed.is_multiple_of(2) { "4096" } else { "1024" };
        let features = pick(&[
            "",
            "",
            "^metadata_csum,uninit_bg",
            "^64bit",
            "^flex_bg,^resize_inode",
            "^metadata_csum,^uninit_bg,^64bit",
            "^extents,^64bit",
            "orphan_file",
        ]);
        let mut make = vec!["-b", block];
        if !features.is_empty() {
            make.extend(["-O", features]);
        }
        let journal = pick(&["", "", "1", "4", "16"]);
        if !journal.is_empty() && (block == "1024" || journal != "1") {
            make.extend([
                "-J",
                if journal == "1" {
                    "size=1"
                } else if journal == "4" {
                    "size=4"
                } else {
                    "size=16"
                },
            ]);
        }
        if block == "4096" {
            make.extend(["-g", pick(&["8192", "16384", "32768"])]);
        }
        let mount = pick(&[
            "commit=1",
            "commit=1,nodelalloc",
            "commit=1,data=journal",
            "commit=2,data=writeback",
            "noatime",
        ]);
        Plan {
            make,
            mount,
            direct: random.bool(),
            writers: random.u64(1..3),
            largest: [20_000, 300_000, 3_000_000][random.usize(..3)],
            pause: Duration::from_micros([0, 500, 3000][random.usize(..3)]),
        }
    }
}

/// Content of a file, from its number.
fn content(number: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    let mut page: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4096).collect();
    // The journal must escape a block that begins like one of its own.
    if number.is_multiple_of(5) {
        page[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
    }
    page.iter().copied().cycle().take(length).collect()
}

/// Files that were fsynced under this path and are not touched again: number and length.
type Stable = Mutex<BTreeMap<String, (u64, usize)>>;

/// Writes, fsyncs, overwrites, renames, links, truncates and deletes until told to end.
struct Writer<'a> {
    folder: PathBuf,
    name: String,
    random: fastrand::Rng,
    stable: &'a Stable,
    next: &'a AtomicU64,
    largest: usize,
    /// Files of its own that may be changed.
    files: Vec<String>,
}

impl Writer<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn forget(&mut self) -> Option<String> {
        if self.files.is_empty() {
            return None;
        }
        let name = self.files.swap_remove(self.random.usize(..self.files.len()));
        self.stable.lock().unwrap().remove(&name);
        Some(name)
    }

    fn create(&mut self) -> std::io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = format!("{}{}", self.name, self.random.u8(..6));
        fs::create_dir_all(self.path(&folder))?;
        let name = format!("{folder}/file {number} {}", "x".repeat(self.random.usize(..90)));
        let length = self.random.usize(..self.largest);
        let file = File::create(self.path(&name))?;
        file.write_all_at(&content(number, length), 0)?;
        self.files.push(name.clone());
        if self.random.u8(..3) == 0 {
            file.sync_all()?;
            File::open(self.path(&folder))?.sync_all()?;
            self.stable.lock().unwrap().insert(name, (number, length));
        }
        Ok(())
    }

    fn change(&mut self, kind: u8) -> std::io::Result<()> {
        let Some(name) = self.forget() else { return Ok(()) };
        let path = self.path(&name);
        let file = File::options().write(true).open(&path)?;
        let length = self.random.u64(1..self.largest as u64);
        match kind {
            0 => file.set_len(length)?,
            1 => file.write_all_at(&content(7, 40_000), length)?,
            2 => {
                file.write_all_at(&content(10, 9000), length / 4096 * 4096)?;
                file.sync_data()?;
            }
            _ => {
                let to = format!("{name} renamed");
                fs::rename(&path, self.path(&to))?;
                self.files.push(to);
                return Ok(());
            }
        }
        self.files.push(name);
        Ok(())
    }

    fn act(&mut self) -> std::io::Result<()> {
        let many = self.files.len() > 40 + 1_500_000 / self.largest * 4;
        match self.random.u8(..10) {
            0..=3 if !many => self.create(),
            0..=5 => match self.forget() {
                Some(name) => fs::remove_file(self.path(&name)),
                None => Ok(()),
            },
            6 if self.random.u8(..6) == 0 => {
                // A folder with long names grows, is indexed, and its blocks come back as data.
                let folder = self.path(&format!("{} folder", self.name));
                fs::create_dir_all(&folder)?;
                for number in 0..60 {
                    let target = "t".repeat(self.random.usize(1..200));
                    std::os::unix::fs::symlink(target, folder.join(format!("{number:0>120}")))?;
                }
                fs::remove_dir_all(folder)
            }
            kind => self.change(kind % 4),
        }
    }
}

/// Allocates every block once and gives it back, so that no group is as mke2fs left it.
fn fill_and_empty(on: &Path) {
    let mut fillers = Vec::new();
    let mut size = IMAGE_MIB * MIB;
    while size >= 64 << 10 {
        let path = on.join(format!("filler {}", fillers.len()));
        let (length, name) = (size.to_string(), path.to_str().unwrap());
        let made = Command::new("fallocate").args(["-l", &length, name]).output().unwrap();
        if String::from_utf8_lossy(&made.stderr).contains("not supported") {
            // Maps of blocks without extents.
            let _ = std::io::copy(&mut std::io::repeat(1), &mut File::create(&path).unwrap());
            size = 0;
        } else if !made.status.success() {
            size /= 2;
        }
        fillers.push(path);
    }
    run("sync", &["-f", on.to_str().unwrap()]);
    fillers.iter().for_each(|path| fs::remove_file(path).unwrap());
}

/// Files that stay, spread over the groups.
fn settle(on: &Path, stable: &Stable, next: &AtomicU64, random: &mut fastrand::Rng) {
    for folder in 0..12 {
        fs::create_dir(on.join(format!("base{folder}"))).unwrap();
        for _ in 0..8 {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let name = format!("base{folder}/{number}");
            let length = random.usize(..1_200_000);
            fs::write(on.join(&name), content(number, length)).unwrap();
            stable.lock().unwrap().insert(name, (number, length));
        }
    }
}

/// Tells the writers to end, also when a check fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What became of one copy.
#[derive(Debug, Default)]
struct Judged {
    /// Bytes of runs worth it that the oracle calls free.
    free: u64,
    /// Those of them that are given.
    given: u64,
    refused: Option<String>,
    replayable: bool,
}

type Names = BTreeMap<String, (u64, usize)>;

fn judge(host: &Host, copy: &Path, fsynced: &Names) -> Judged {
    let replayed = host.copy(copy, "replayed");
    ext4::replay(&replayed);
    let after = ext4::free(&replayed);
    let checked = host.copy(&replayed, "checked");
    let output = Command::new("e2fsck").arg("-fy").arg(&checked).output().unwrap();
    assert!(output.status.code().unwrap() < 4, "{}", String::from_utf8_lossy(&output.stdout));
    // Free in the bitmaps as replayed, and not found in use by a check.
    let truth = both(&after.ranges, &ext4::free(&checked).ranges);
    let mut judged = Judged { free: bytes(&worth_it(&truth)), ..Judged::default() };
    let image = Image::open(copy);
    let mut given = Vec::new();
    let opened = Ext4::open(&image);
    let asked = opened.and_then(|system| {
        judged.replayable = system.consistency() == Consistency::Replayable;
        system.free(&mut |range| given.push(range))?;
        let free = joined(given.clone());
        for seed in 0..3 {
            system.in_use(seed, &mut |range| {
                assert_eq!(common_bytes(&free, &[range]), 0, "free, and in use: {range:?}");
            })?;
        }
        Ok(())
    });
    if let Err(refused) = asked {
        judged.refused = Some(refused.why);
        return judged;
    }
    let given = joined(given);
    let live = bytes(&given) - common_bytes(&given, &truth);
    assert_eq!(live, 0, "bytes are called free and are live after replay");
    judged.given = common_bytes(&given, &worth_it(&truth));
    let map = filter_disk(&image, &FilterOptions::default(), SnapshotKind::Crash);
    let masked: Vec<Extent> = map.ranges().iter().map(|(range, _)| *range).collect();
    assert_eq!(common_bytes(&masked, &given), bytes(&masked), "the mask is wider");
    let enough = bytes(&masked) * 10 >= bytes(&given) * 8 || map.dropped.ranges > 0;
    assert!(enough, "{} of {}: {:?}", bytes(&masked), bytes(&given), map.refused);
    let refused: Vec<_> = map.refused.iter().map(|refused| refused.what.as_str()).collect();
    assert_eq!(refused, ["swap and page files"], "files are not named before a replay");
    spoil(copy, &given);
    let device = Loop::whole(copy);
    let on = host.folder.path().join("spoilt");
    let mount = Mount::new(&device.0, &on, "noatime");
    for (name, (number, length)) in fsynced {
        let found = fs::read(on.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(found == content(*number, *length), "{name}: its content is lost");
    }
    drop(mount);
    drop(device);
    run("e2fsck", &["-fn", copy.to_str().unwrap()]);
    judged
}

/// What two lists share.
fn both(one: &[Extent], other: &[Extent]) -> Vec<Extent> {
    let (mut left, mut right, mut found) = (0, 0, Vec::new());
    while let (Some(a), Some(b)) = (one.get(left), other.get(right)) {
        let (a_end, b_end) = (a.start + a.length, b.start + b.length);
        let start = a.start.max(b.start);
        let length = a_end.min(b_end).saturating_sub(start);
        if length > 0 {
            found.push(Extent { start, length });
        }
        if a_end <= b_end { left += 1 } else { right += 1 }
    }
    found
}

fn live(host: &Host, seed: u64, copies: u64) -> Vec<Judged> {
    let mut random = fastrand::Rng::with_seed(seed);
    let plan = Plan::of(seed, &mut random);
    println!("seed {seed}: {plan:?}");
    let image = host.path("guest");
    empty(&image, IMAGE_MIB * MIB);
    let fixed = ["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0"];
    let name = image.to_str().unwrap();
    run("mke2fs", &[fixed.as_slice(), &plan.make, &[name]].concat());
    let device = if plan.direct { Loop::direct(&image) } else { Loop::whole(&image) };
    let on = host.folder.path().join("live");
    let (stable, next) = (Stable::default(), AtomicU64::new(seed * 1_000_000));
    {
        // Another mount, so that all of this is not in the journal: it was long ago.
        let _mount = Mount::new(&device.0, &on, "noatime");
        fill_and_empty(&on);
        settle(&on, &stable, &next, &mut random);
    }
    // Asked now: e2fsck, the oracle later, marks groups that it finds empty as never written.
    assert_eq!(ext4::free(&image).unset, [], "a group was never filled");
    let mount = Mount::new(&device.0, &on, plan.mount);
    let end = AtomicBool::new(false);
    let judged = std::thread::scope(|scope| {
        let _end = End(&end);
        for writer in 0..plan.writers {
            let mut writer = Writer {
                folder: on.clone(),
                name: format!("writer{writer}"),
                random: fastrand::Rng::with_seed(seed * 100 + writer),
                stable: &stable,
                next: &next,
                largest: plan.largest,
                files: Vec::new(),
            };
            let (end, pause) = (&end, plan.pause);
            scope.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    writer.act().unwrap();
                    std::thread::sleep(pause);
                }
            });
        }
        let mut judged = Vec::new();
        for _ in 0..copies {
            std::thread::sleep(Duration::from_millis(random.u64(20..1500)));
            let before = stable.lock().unwrap().clone();
            let copy = host.copy(&image, "copy");
            let after = stable.lock().unwrap().clone();
            let fsynced = before.into_iter().filter(|(name, _)| after.contains_key(name)).collect();
            judged.push(judge(host, &copy, &fsynced));
            for name in ["copy", "replayed", "checked"] {
                fs::remove_file(host.path(name)).unwrap();
            }
        }
        judged
    });
    drop(mount);
    drop(device);
    run("e2fsck", &["-fn", name]);
    judged
}

#[test]
fn what_is_called_free_under_load_is_free_after_replay_and_worth_having() {
    if !can(true, &TOOLS) {
        return;
    }
    let host = Host::new();
    let mut all = Vec::new();
    let seeds = images::seeds(2);
    let copies = if seeds < 10 { COPIES / 2 } else { COPIES };
    for seed in 0..seeds {
        let judged = live(&host, seed, copies);
        for one in &judged {
            println!("  {one:?} {:.3}", one.given as f64 / one.free as f64);
        }
        all.extend(judged);
    }
    let good = all.iter().filter(|one| one.given * 10 >= one.free * 9).count();
    let replayable = all.iter().filter(|one| one.replayable).count();
    let refused = all.iter().filter(|one| one.refused.is_some()).count();
    let count = all.len();
    println!(
        "{count} copies: {replayable} to be replayed, {refused} refused, {good} give 90 % of what is free"
    );
    assert!(replayable * 10 >= count * 9, "the load is none");
    // A statement about many plans; of few, the one with the heaviest load may be every second.
    let least = if count >= 40 { 8 } else { 5 };
    assert!(good * 10 >= count * least, "the filter is not worth having");
}

/// The checksum of ext3's time covers a whole transaction and may end a replay early.
#[test]
fn a_journal_with_old_checksums_is_believed_only_when_it_is_empty() {
    if !can(true, &TOOLS) {
        return;
    }
    let host = Host::new();
    let image = host.path("guest");
    empty(&image, 64 * MIB);
    let name = image.to_str().unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "^metadata_csum", name]);
    let device = Loop::whole(&image);
    let on = host.folder.path().join("live");
    let mount = Mount::new(&device.0, &on, "journal_checksum");
    fs::write(on.join("file"), content(1, 5000)).unwrap();
    File::open(on.join("file")).unwrap().sync_all().unwrap();
    let copy = host.copy(&image, "copy");
    drop(mount);
    let free = |path: &Path| {
        let image = Image::open(path);
        Ext4::open(&image).and_then(|system| system.free(&mut |_| {}))
    };
    free(&image).unwrap();
    assert!(free(&copy).unwrap_err().why.contains("old checksums"));
}
