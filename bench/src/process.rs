//! What a process used, as /proc tells it.
//!
//! In: process ids of children. Out: CPU seconds, peak memory. Must not: signal anything.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::Value;

/// CPU seconds of a process, user and system, all threads, ended ones included.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second field is the name in parentheses, which may hold anything.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime are fields 14 and 15 (proc_pid_stat(5)); `rest` begins with field 3.
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().with_context(|| path.clone())?;
    ensure!(ticks.len() == 2, "{path} is not understood");
    Ok((ticks[0] + ticks[1]) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Largest resident set since the last [`reset_peak`]; 0 if the process is gone.
pub(crate) fn peak_rss_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Starts the peak anew (clear_refs 5, proc(5)); kernels without it keep the old one.
pub(crate) fn reset_peak(pid: u32) {
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// A program that has ended well.
pub(crate) struct Finished {
    pub(crate) wall_seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// Largest resident set, as last seen within 20 ms of its end.
    pub(crate) rss_bytes: u64,
    /// The JSON object that it printed.
    pub(crate) json: Value,
}

/// Runs a program that prints one JSON object, and measures it from outside.
pub(crate) fn run(command: &mut Command) -> Result<Finished> {
    let shown = format!("{command:?}");
    let started = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = child.spawn().with_context(|| shown.clone())?;
    // What it prints fits a pipe many times over, but a reader beside it cannot hurt.
    let output = child.stdout.take().context("no output")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(output));
    let (ended, pid) = (AtomicBool::new(false), child.id());
    let rss_bytes = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_peak(pid, &ended));
        let awaited = await_end(&child);
        ended.store(true, Ordering::Relaxed);
        awaited.map(|()| watcher.join().unwrap_or(0))
    })?;
    let wall_seconds = started.elapsed().as_secs_f64();
    // Ended but not reaped: its account is still there.
    let cpu_seconds = cpu_seconds(child.id());
    let status = child.wait()?;
    let text = reader.join().unwrap_or_else(|_| Ok(String::new()))?;
    ensure!(status.success(), "{shown} failed: {status}\n{text}");
    let json = serde_json::from_str(&text).with_context(|| format!("{shown} printed {text:?}"))?;
    Ok(Finished { wall_seconds, cpu_seconds: cpu_seconds?, rss_bytes, json })
}

/// A process that has ended has no memory any more, so its peak is asked for while it runs.
fn watch_peak(pid: u32, ended: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !ended.load(Ordering::Relaxed) {
        peak = peak.max(peak_rss_bytes(pid));
        std::thread::sleep(Duration::from_millis(20));
    }
    peak
}

fn await_end(child: &Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{cpu_seconds, peak_rss_bytes, run};
    use std::process::Command;

    #[test]
    fn our_own_account_is_found() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(peak_rss_bytes(pid) > 1 << 20);
        assert!(cpu_seconds(u32::MAX).is_err());
    }

    #[test]
    fn a_program_is_measured_and_its_failure_is_told() {
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo '{\"a\": 3}'";
        let finished = run(Command::new("sh").args(["-c", busy])).unwrap();
        assert_eq!(finished.json["a"], 3);
        assert!(finished.wall_seconds > 0.0 && finished.cpu_seconds > 0.0);
        assert!(finished.rss_bytes > 100_000, "{}", finished.rss_bytes);
        let failed = run(Command::new("sh").args(["-c", "echo no; exit 3"])).err().unwrap();
        assert!(failed.to_string().contains("exit status: 3"), "{failed}");
    }
}
