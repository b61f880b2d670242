//! The `gantry-sim` program: arguments in, one JSON line on standard output when it is ready.
//!
//! Must not hold logic: everything is in the library.

fn main() {}
