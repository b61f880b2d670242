//! The calling thread's core, priority and CPU time.
//!
//! In: a core's number. Out: effects on the calling thread only. Must not: touch other threads.

use std::io;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The cores this thread may run on, ascending; never empty.
pub fn available_cores() -> Vec<usize> {
    if let Ok(mask) = sched_getaffinity(None) {
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| mask.is_set(core)).collect();
        if !cores.is_empty() {
            return cores;
        }
    }
    // More cores than the mask has bits.
    (0..std::thread::available_parallelism().map_or(1, usize::from)).collect()
}

/// Binds the calling thread to core `core` (a number of [`available_cores`]).
///
/// Fails with `InvalidInput` if the core does not exist or is not allowed.
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("there is no core {core}"),
        ));
    }
    let mut mask = CpuSet::new();
    mask.set(core);
    Ok(sched_setaffinity(None, &mask)?)
}

/// Lets the calling thread run only when nothing else wants the core (SCHED_IDLE, else nice 19).
pub fn set_idle_priority() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads `param`, which lives until it returns; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &param) } == 0 {
        return Ok(());
    }
    // On Linux this, too, is a thread's own value.
    Ok(rustix::process::setpriority_process(None, 19)?)
}

/// CPU time that the calling thread has used.
pub fn cpu_time_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{available_cores, cpu_time_thread, pin_current_thread, set_idle_priority};

    #[test]
    fn a_thread_can_be_bound_to_any_of_its_cores() {
        let cores = available_cores();
        for core in &cores {
            let core = *core;
            let seen = std::thread::spawn(move || {
                pin_current_thread(core).unwrap();
                (available_cores(), rustix::thread::sched_getcpu())
            });
            assert_eq!(seen.join().unwrap(), (vec![core], core));
        }
        assert_eq!(available_cores(), cores, "other threads are as they were");
        assert!(pin_current_thread(100_000).is_err());
    }

    #[test]
    fn idle_threads_run_and_their_time_counts() {
        let spin = std::thread::spawn(|| {
            set_idle_priority().unwrap();
            let start = cpu_time_thread();
            let mut sum = 0u64;
            while cpu_time_thread() - start < std::time::Duration::from_millis(5) {
                sum = std::hint::black_box(sum + 1);
            }
            sum
        });
        assert!(spin.join().unwrap() > 0);
    }
}
