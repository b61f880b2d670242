//! The fleet: every mover under gantryd, and the tasks that they carry out.
//!
//! * [`view`]: what others see of a mover and of a task.
//! * [`state`]: what is known and what is to be said next (pure, `now` is an argument).
//!
//! Invariants: a task ends exactly once for its owner, whatever breaks on the way; a mover keeps a
//! task's end until its owner has taken it in; no mover can touch a task of another.

pub mod view;
pub mod state;
