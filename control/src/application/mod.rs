//! Application-aware steps: scripts in a guest before and after the snapshot.
//!
//! In: a [`ScriptRun`], a machine. Out: its exit code and bounded output; what was uploaded is gone
//! again, whatever happened. [`plan`] turns a script into program and arguments (pure), [`run`] has it
//! done through [`crate::vcenter::guest`], [`plan::OnFailure`] says what a failure means for the
//! session (pure).
//!
//! Must not: put a password anywhere but into the login; leave a script or its output in the guest.

pub mod plan;
pub mod run;

pub use plan::{Family, OnFailure, Plan, PlanError, Script, ScriptRun};
pub use run::{ScriptEnd, ScriptError, run};
