//! What the host gives: clock, random numbers, cores; and what this process has used of it.
//!
//! In: the kernel, /proc and the affinity mask. Out: numbers for ids and reports, core lists.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use gantry_common::failure::{Failure, FailureKind};

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Random bytes for ids.
pub fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Failure::new(FailureKind::Internal, format!("no random numbers: {error}"))
    })?;
    Ok(bytes)
}

/// CPU seconds of this process so far, user and system, all threads (`/proc/self/stat`, proc(5)).
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command name may hold spaces and parentheses: fields count from after the last one.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    (ticks(11) + ticks(12)) as f64 / per_second as f64
}

/// Largest resident set of this process so far, bytes (`VmHWM`, proc(5)).
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Parses a CPU set such as `0-3,6`.
///
/// # Errors
/// A text that says what is wrong with it.
pub fn parse_cpu_set(text: &str) -> Result<Vec<usize>, String> {
    let error = || format!("'{text}' is no CPU set; write it as 0-3,6");
    let number = |part: &str| part.trim().parse::<usize>().ok().filter(|core| *core < 4096);
    let mut cores = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first).ok_or_else(error)?, number(last).ok_or_else(error)?);
        if first > last {
            return Err(error());
        }
        cores.extend(first..=last);
    }
    Ok(cores.into_iter().collect())
}

/// Cores for `workers` workers: of the CPU set if one is given, else of those this process may
/// use; the set is used round robin when there are more workers than cores.
///
/// # Errors
/// A text, when the set names cores that this process may not use.
pub fn worker_cores(workers: Option<usize>, cpu_set: Option<&str>) -> Result<Vec<usize>, String> {
    let allowed = gantry_uring::thread::available_cores();
    let cores = match cpu_set {
        None => allowed,
        Some(text) => {
            let cores = parse_cpu_set(text)?;
            if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
                return Err(format!(
                    "core {core} is not among those this process may use: {allowed:?}"
                ));
            }
            cores
        }
    };
    let count = workers.unwrap_or(cores.len()).clamp(1, 256);
    Ok(cores.iter().copied().cycle().take(count).collect())
}

#[cfg(test)]
mod tests {
    use super::{cpu_seconds, parse_cpu_set, peak_rss_bytes};

    #[test]
    fn cpu_sets_parse() {
        assert_eq!(parse_cpu_set("0-2,6,1"), Ok(vec![0, 1, 2, 6]));
        for bad in ["", "a", "3-1", "1,", "99999"] {
            assert!(parse_cpu_set(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn this_process_uses_something() {
        assert!(peak_rss_bytes() > 1 << 20);
        let mut x = 0u64;
        while cpu_seconds() == 0.0 {
            x = x.wrapping_add(1);
        }
    }
}
