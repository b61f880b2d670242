//! `gantry-bench`: what each stage of Gantry's data plane costs, beside the library that it uses,
//! and what the whole road costs, beside the sum of its stages.
//!
//! In: disk images with real content. Out: a table and one JSON object; only ratios of one run are
//! claims. Invariant: what is compared was measured alternately, on the same bytes, in the same
//! run. Must not: be a dependency of anything, write outside its work folder.

pub mod arguments;
pub mod machine;
pub mod measure;
pub mod blocks;
mod process;
pub mod stages;
pub mod end_to_end;
pub mod scale;
mod table;

use anyhow::Result;
use arguments::{Arguments, Command};
use serde::Serialize;

/// Carries out what the arguments ask for.
///
/// # Errors
/// What kept a figure from being measured.
pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Stages(arguments) => {
            let report = stages::run(&arguments)?;
            show(arguments.sample.json, &report, table::stages)
        }
        Command::EndToEnd(arguments) => {
            let report = end_to_end::run(&arguments)?;
            show(arguments.sample.json, &report, table::end_to_end)
        }
        Command::Scale(arguments) => {
            let report = scale::run(&arguments)?;
            show(arguments.json, &report, table::scale)
        }
    }
}

fn show<R: Serialize>(json: bool, report: &R, text: fn(&R) -> String) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{}", text(report));
    }
    Ok(())
}
