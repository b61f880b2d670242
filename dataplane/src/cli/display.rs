//! Progress on a terminal, and the tables of reports.
//!
//! In: live numbers. Out: bars on standard error, only if it is a terminal. Rates and times left
//! count allocated or changed bytes, never the virtual size.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::restore::Progress as RestoreProgress;
use crate::stats::Progress;

/// Bars that follow live numbers until dropped; none if standard error is no terminal.
pub struct Bars {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bars {
    /// One bar for each name; `read` gives each one's position and length in bytes.
    fn start(names: Vec<String>, read: impl Fn(usize) -> (u64, u64) + Send + 'static) -> Bars {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::io::stderr().is_terminal().then(|| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || follow(&names, &read, &stop))
        });
        Bars { stop, thread }
    }

    /// Of a backup: one bar a disk.
    pub fn of_backup(disks: Vec<(String, Arc<Progress>)>) -> Bars {
        let (names, numbers): (Vec<String>, Vec<_>) = disks.into_iter().unzip();
        Bars::start(names, move |disk| {
            let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (of(&numbers[disk].done_bytes), of(&numbers[disk].todo_bytes))
        })
    }

    /// Of a restore or a compare.
    pub fn of_restore(name: &str, progress: Arc<RestoreProgress>) -> Bars {
        Bars::start(vec![name.to_owned()], move |_| {
            let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (of(&progress.done_bytes), of(&progress.todo_bytes))
        })
    }
}

/// The line of a maintenance job; none if standard error is no terminal.
pub struct JobLine {
    bar: Option<ProgressBar>,
}

impl JobLine {
    /// Nothing is shown before the first call of [`JobLine::show`].
    pub fn new() -> JobLine {
        let style = ProgressStyle::with_template("{msg:24!} {bar:28} {percent:>3} %  ETA {eta}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0).with_style(style));
        JobLine { bar }
    }

    /// Shows how far the job is.
    pub fn show(&self, phase: &str, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            if bar.message() != phase {
                bar.reset();
                bar.set_message(phase.to_owned());
            }
            bar.set_length(total);
            bar.set_position(done.min(total));
        }
    }
}

impl Drop for JobLine {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(names: &[String], read: &dyn Fn(usize) -> (u64, u64), stop: &AtomicBool) {
    let all = MultiProgress::new();
    let style = ProgressStyle::with_template(
        "{prefix:24!} {bar:28} {bytes:>11}/{total_bytes:<11} {binary_bytes_per_sec:>13} ETA {eta}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = |name: &String| {
        let short = name.rsplit('/').next().unwrap_or(name).to_owned();
        all.add(ProgressBar::new(0).with_style(style.clone())).with_prefix(short)
    };
    let bars: Vec<ProgressBar> = names.iter().map(bar).collect();
    while !stop.load(Ordering::Relaxed) {
        for (number, bar) in bars.iter().enumerate() {
            let (done, todo) = read(number);
            bar.set_length(todo);
            bar.set_position(done);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bars.iter().for_each(ProgressBar::finish_and_clear);
}
