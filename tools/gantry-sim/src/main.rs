//! The `gantry-sim` program: arguments in, one line of JSON on standard output when it is ready.
//!
//! Must not hold logic: everything is in the library.

fn main() -> anyhow::Result<()> {
    gantry_sim::cli::run()
}
