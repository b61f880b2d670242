//! What a run did, line by line: printed when the suite fails, or as it comes.
//!
//! In: lines. Out: with a failure its title (how to replay it) and the last lines.

use std::collections::VecDeque;

/// Lines that a failure prints.
const TRACE_LINES: usize = 80;

/// Whether all that happens is printed.
pub fn is_traced() -> bool {
    std::env::var_os("GANTRY_CRASH_TRACE").is_some()
}

/// What happened; printed if the suite fails.
#[derive(Debug)]
pub struct Trace {
    title: String,
    lines: VecDeque<String>,
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = Vec::from(std::mem::take(&mut self.lines)).join("\n  ");
            eprintln!("{}; what happened:\n  {lines}", self.title);
        }
    }
}

impl Trace {
    pub fn new(title: String) -> Trace {
        Trace { title, lines: VecDeque::new() }
    }

    pub fn note(&mut self, line: String) {
        if self.lines.len() >= TRACE_LINES {
            self.lines.pop_front();
        }
        if is_traced() {
            eprintln!("  {line}");
        }
        self.lines.push_back(line);
    }
}
