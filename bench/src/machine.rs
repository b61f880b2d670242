//! On what was measured: the facts without which a figure says nothing.
//!
//! In: /proc and the system. Out: [`Machine`].

use gantry_uring::thread::available_cores;
use serde::{Deserialize, Serialize};

/// Load of other programs, in cores, above which figures are not worth much.
const LOAD_QUIET_MAX: f64 = 0.3;

/// The machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// CPU model as the kernel names it.
    pub cpu: String,
    /// Kernel release.
    pub kernel: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Load average of the last minute when the run began.
    pub load_before: f64,
    /// Whether this program was built with optimization; figures of a debug build mean nothing.
    pub optimized: bool,
    /// Version of Gantry.
    pub version: String,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Machine {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&text("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
        let load = text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok());
        Machine {
            cores: available_cores().len(),
            cpu: field(&text("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            memory_bytes: kib.unwrap_or(0) * 1024,
            load_before: load.unwrap_or(0.0),
            optimized: !cfg!(debug_assertions),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What makes the figures doubtful.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        if !self.optimized {
            all.push("built without optimization: use cargo build --release".to_owned());
        }
        if self.load_before > LOAD_QUIET_MAX {
            all.push(format!(
                "the machine was not quiet (load {:.2} before the run)",
                self.load_before
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::Machine;

    #[test]
    fn this_machine_has_cores_memory_and_a_kernel() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty());
    }
}
