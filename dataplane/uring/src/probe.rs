//! Setting up io_uring with the best mode this kernel has, and saying what was obtained.
//!
//! In: a number of entries. Out: a ring and its [`Features`], or a [`SetupError`] that says what a
//! person can do. Invariant: whatever mode was obtained, plain reads, writes, fsync and polls work.
//! Must not: use IOPOLL (fails on most devices) or SQPOLL (burns a core).

use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;

/// How completions are delivered; each step needs a newer kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// SINGLE_ISSUER | DEFER_TASKRUN (Linux 6.1): no interruption between calls, cheapest.
    Deferred,
    /// SINGLE_ISSUER | COOP_TASKRUN (Linux 6.0).
    CooperativeSingle,
    /// COOP_TASKRUN (Linux 5.19).
    Cooperative,
    /// No flags (Linux 5.11).
    Plain,
}

impl Mode {
    /// Every mode, best first: the order in which they are tried.
    pub const ALL: [Mode; 4] =
        [Mode::Deferred, Mode::CooperativeSingle, Mode::Cooperative, Mode::Plain];
}

/// What a ring has obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// How completions are delivered.
    pub mode: Mode,
    /// Whether registered buffers can be read into and written from.
    pub fixed_buffers: bool,
    /// Operations that may be in flight.
    pub entries: u32,
}

/// Why there is no ring, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The system call does not exist.
    #[error(
        "this kernel has no io_uring: it needs Linux 5.11 or newer with CONFIG_IO_URING, and no \
         sandbox (such as gVisor) in between"
    )]
    Missing,
    /// The system call is forbidden.
    #[error(
        "io_uring is forbidden here{sysctl}: set sysctl kernel.io_uring_disabled=0, and in a \
         container allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile"
    )]
    Forbidden {
        /// What the sysctl says, if it is the cause.
        sysctl: &'static str,
    },
    /// Locked memory or memory ran out.
    #[error(
        "io_uring got no memory for its queues: raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=)"
    )]
    NoMemory,
    /// The kernel has io_uring, but too old a one.
    #[error("this kernel's io_uring has no {what}: it needs Linux 5.11 or newer")]
    TooOld {
        /// What is absent.
        what: &'static str,
    },
    /// Anything else.
    #[error("io_uring could not be set up: {0}")]
    Other(#[from] io::Error),
}

impl SetupError {
    fn from_system(error: io::Error, io_uring_disabled: Option<u8>) -> SetupError {
        match Errno::from_io_error(&error) {
            Some(Errno::NOSYS) => SetupError::Missing,
            Some(Errno::PERM | Errno::ACCESS) => SetupError::Forbidden {
                sysctl: match io_uring_disabled {
                    Some(1) => " (kernel.io_uring_disabled is 1: members of io_uring_group only)",
                    Some(2) => " (kernel.io_uring_disabled is 2)",
                    _ => "",
                },
            },
            Some(Errno::NOMEM) => SetupError::NoMemory,
            _ => SetupError::Other(error),
        }
    }
}

fn io_uring_disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Makes a ring for `entries` operations in the first mode of `modes` that the kernel accepts.
pub(crate) fn set_up(entries: u32, modes: &[Mode]) -> Result<(IoUring, Features), SetupError> {
    let mut refused = io::Error::from(io::ErrorKind::Unsupported);
    for &mode in modes {
        match build(entries, mode) {
            Ok(ring) => {
                let features = examine(&ring, mode, entries)?;
                return Ok((ring, features));
            }
            // An unknown flag: the next mode asks for less.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => refused = error,
            Err(error) => return Err(SetupError::from_system(error, io_uring_disabled())),
        }
    }
    Err(SetupError::Other(refused))
}

fn build(entries: u32, mode: Mode) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    // A forked child must not share the queues.
    builder.dontfork();
    match mode {
        Mode::Deferred => {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        Mode::CooperativeSingle => {
            builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
        }
        Mode::Cooperative => {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        Mode::Plain => {}
    }
    builder.build(entries)
}

fn examine(ring: &IoUring, mode: Mode, entries: u32) -> Result<Features, SetupError> {
    let needs = |there: bool, what| if there { Ok(()) } else { Err(SetupError::TooOld { what }) };
    needs(ring.params().is_feature_ext_arg(), "wait with a timeout")?;
    needs(ring.params().is_feature_nodrop(), "lossless completion queue")?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    needs(probe.is_supported(opcode::Read::CODE), "READ")?;
    needs(probe.is_supported(opcode::Write::CODE), "WRITE")?;
    needs(probe.is_supported(opcode::Fsync::CODE), "FSYNC")?;
    needs(probe.is_supported(opcode::PollAdd::CODE), "POLL_ADD")?;
    let fixed_buffers =
        probe.is_supported(opcode::ReadFixed::CODE) && probe.is_supported(opcode::WriteFixed::CODE);
    Ok(Features { mode, fixed_buffers, entries })
}

#[cfg(test)]
mod tests {
    use super::{Mode, SetupError, set_up};
    use rustix::io::Errno;
    use std::io;

    #[test]
    fn every_mode_alone_works_or_is_refused_as_unknown() {
        for mode in Mode::ALL {
            match set_up(8, &[mode]) {
                Ok((_, features)) => assert_eq!((features.mode, features.entries), (mode, 8)),
                Err(SetupError::Other(error)) => {
                    assert_eq!(Errno::from_io_error(&error), Some(Errno::INVAL));
                }
                Err(other) => panic!("{mode:?}: {other}"),
            }
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        for (errno, disabled, words) in [
            (Errno::NOSYS, None, "5.11"),
            (Errno::PERM, Some(2), "io_uring_disabled is 2"),
            (Errno::PERM, Some(0), "seccomp"),
            (Errno::ACCESS, None, "seccomp"),
            (Errno::NOMEM, None, "RLIMIT_MEMLOCK"),
            (Errno::MFILE, None, "could not be set up"),
        ] {
            let text = SetupError::from_system(io::Error::from(errno), disabled).to_string();
            assert!(text.contains(words), "{text}");
        }
    }
}
