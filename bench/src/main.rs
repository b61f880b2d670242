//! `gantry-bench`: the benchmark program. Thin: parses and calls the library.

use std::process::ExitCode;

use clap::Parser;
use gantry_bench::arguments::Arguments;

fn main() -> ExitCode {
    match gantry_bench::run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantry-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
