//! `gantry-mover`: the data mover's program. Thin: parses, calls the library, turns the result
//! into an exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use gantry_dataplane::cli::{self, arguments::Arguments};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&arguments.log)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    log.with_writer(std::io::stderr).init();
    match cli::run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("gantry-mover: {failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
