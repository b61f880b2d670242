//! Lives of the store: opening, working, dying, and what is left.
//!
//! In: the seed. Out: a store that is open again, compared with the model. A life ends at an
//! operation drawn by the seed, between two actions, or in order; the next opening may be cut too.

use gantry_dataplane::store::error::StoreError;
use gantry_dataplane::store::footer::{Slot, read_footer};
use gantry_dataplane::store::layout::{INDEX, PackNumber};
use gantry_dataplane::store::storage::faulty::Fault;
use gantry_dataplane::store::storage::{OpenMode, Storage};

use super::trace::is_traced;
use super::world::World;

/// Errors of Linux, errno(3).
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// After which operations the power goes off in some lives, and up to how many of them later.
const CUTS: [(&str, u64); 4] = [("sync", 80), ("remove", 8), ("rename", 8), ("punch", 4)];

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The power goes off.
    PowerCut,
    /// The process is killed; the kernel lives on.
    Kill,
    /// The store is shut down.
    Restart,
}

impl World {
    /// One life: actions until its end, which is cut off at a drawn operation in most lives.
    pub fn live(&mut self, actions: usize) {
        let reach = [20, 150, 600][self.random.usize(0..3)];
        let cut_in = self.random.u64(0..reach);
        match self.random.u8(0..6) {
            0 => {}
            1 | 2 => {
                let (operation, skip_max) = CUTS[self.random.usize(0..CUTS.len())];
                let skip = self.random.u64(0..skip_max);
                self.disk.power_off_after(operation, skip);
            }
            _ => self.disk.power_off_at(self.disk.operations() + cut_in),
        }
        if self.random.u8(0..4) == 0 {
            self.add_faults();
        }
        for _ in 0..actions {
            self.act();
            if self.is_cut() && self.random.bool() {
                break;
            }
        }
        let end = match self.random.u8(0..10) {
            0 if !self.is_cut() => End::Restart,
            1..4 => End::Kill,
            _ => End::PowerCut,
        };
        self.end_life(end);
    }

    fn add_faults(&mut self) {
        const FAULTS: [(&str, &str); 12] = [
            ("sync", ".pack"),
            ("sync", ".journal"),
            ("sync", "journal"),
            ("sync", ".manifest"),
            ("sync", "points/"),
            ("sync", "index"),
            ("write", ".pack"),
            ("write", ".journal"),
            ("write", ".manifest"),
            ("open", ".pack"),
            ("rename", ""),
            ("remove", ""),
        ];
        self.is_faulty = true;
        for _ in 0..self.random.u8(1..3) {
            let (operation, part) = FAULTS[self.random.usize(0..FAULTS.len())];
            let errno = if self.random.bool() { EIO } else { ENOSPC };
            let (skip, count) = (self.random.u32(0..12), self.random.u32(1..3));
            self.note(format!("fault {errno}: {operation} {part} after {skip}, {count} times"));
            let path_part = part.to_owned();
            self.disk.fail(Fault { operation, path_part, errno, skip, count });
        }
    }

    /// Ends the life, and gives the disk what is left.
    pub fn end_life(&mut self, end: End) {
        let cut = self.disk.cut_operation();
        let seed = self.random.u64(..);
        self.note(format!("end: {end:?} with {seed}, cut at {cut:?}"));
        match end {
            End::PowerCut => self.stats.power_cuts += 1,
            End::Kill => self.stats.kills += 1,
            End::Restart => {
                self.stats.restarts += 1;
                self.store().shut_down();
            }
        }
        self.stats.operations += self.disk.operations();
        self.describe_disk();
        self.drop_store();
        self.disk = match end {
            End::PowerCut => self.disk.crash(seed),
            End::Kill => self.disk.kill(seed),
            End::Restart => self.disk.kill(seed),
        };
        self.disk.end_faults();
        self.describe_disk();
        self.is_faulty = false;
        if self.random.u8(0..20) == 0 && self.disk.remove(INDEX).is_ok() {
            self.stats.index_lost += 1;
            self.note("the index is lost");
        }
    }

    /// Prints files and footers, if the trace is printed as it comes.
    fn describe_disk(&self) {
        if !is_traced() {
            return;
        }
        for path in self.disk.files() {
            let number = path.rsplit('/').next().and_then(PackNumber::from_file_name);
            let file = self.disk.open(&path, OpenMode::Read);
            let slots = number.zip(file.ok()).map(|(number, file)| read_footer(&file, number));
            let slot = |slot: &Slot| {
                format!("{}{}", &slot.id.to_string()[..6], if slot.is_gone { "-" } else { "" })
            };
            let slots = match slots {
                Some(Ok(slots)) => slots.iter().map(slot).collect::<Vec<_>>().join(" "),
                Some(Err(fault)) => fault.to_string(),
                None => String::new(),
            };
            eprintln!("      {path} {slots}");
        }
    }

    /// Opens the store again, with crashes on the way, and compares all with the model.
    pub fn reopen(&mut self) {
        for _ in 0..3 {
            if self.random.u8(0..4) > 0 {
                break;
            }
            let cut_in = self.random.u64(0..200);
            self.disk.power_off_at(self.disk.operations() + cut_in);
            let opened = self.try_open();
            let was_cut = self.is_cut();
            assert!(opened.is_ok() || was_cut, "opening without a fault: {:?}", opened.err());
            self.stats.crashes_while_opening += u64::from(was_cut);
            let end = if self.random.u8(0..3) == 0 { End::Kill } else { End::PowerCut };
            self.note(format!("opening was cut: {:?}", opened.err()));
            self.end_life(end);
        }
        self.open_whole();
        self.check();
    }

    /// Opens the store, which must succeed.
    pub fn open_whole(&mut self) {
        self.disk.power_off_at(u64::MAX);
        if let Err(error) = self.try_open() {
            panic!("the repository does not open: {error}");
        }
    }

    /// The end of a run: a verification finds what is spoilt, every VM gets a whole backup, what
    /// nobody needs is given back, and all is well.
    pub fn conclude(&mut self) {
        self.verify();
        let mut made = Vec::new();
        for vm in 0..self.vms.len() {
            let session = self.begin(vm, true, None);
            self.open(session);
            self.finish(session);
            assert!(self.backups[&session].is_committed, "a backup without any fault");
            made.push(self.backups[&session].point);
        }
        self.settle();
        assert!(self.pool_is_whole(), "every buffer is back");
        self.check();
        // Whatever was spoilt before: what is made now restores.
        let spoilt = std::mem::take(&mut self.points.is_damaged);
        self.restores_strictly(&made);
        self.points.is_damaged = spoilt;
        self.verify();
        if !self.store().is_collecting() {
            self.begin_collection();
        }
        self.finish_collection();
        self.restores_strictly(&made);
        self.store().shut_down();
        self.stats.operations += self.disk.operations();
        self.drop_store();
        self.disk = self.disk.after_power_loss();
        let opened: Result<(), StoreError> = self.try_open();
        assert!(opened.is_ok(), "{:?}", opened.err());
        self.check();
        self.restores_strictly(&made);
    }
}
