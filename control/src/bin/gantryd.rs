//! `gantryd`: the control plane as a service.
//!
//! In: a configuration file. Out: jobs that run, movers that are let in, the REST API; an exit code:
//! 0 stopped as asked, 2 usage, 1 a bug.

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_control::daemon::program::main()
}
