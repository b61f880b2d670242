//! `gantry`: the control plane's command line.
//!
//! In: arguments. Out: what the library did, as text or JSON; an exit code: 0 done, 2 usage,
//! 3 source, 4 network, 5 repository, 1 a bug.

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_control::cli::main()
}
