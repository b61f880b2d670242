//! The fleet: every mover under gantryd, and the tasks that they carry out.
//!
//! * [`view`]: what others see of a mover and of a task.
//! * [`state`]: what is known and what is to be said next (pure, `now` is an argument).
//! * [`registry`]: who is let in.
//! * [`service`]: the listener, its connections and the clock around the state.
//! * [`task_handle`]: a task, for its owner.
//! * [`enrolment`]: how a mover is invited, let in, and keeps its certificate.
//!
//! Invariants: a task ends exactly once for its owner, whatever breaks on the way; a mover keeps a
//! task's end until its owner has taken it in; no mover can touch a task of another.

pub mod view;
pub mod state;
pub mod registry;
pub mod service;
pub mod task_handle;
pub mod enrolment;

pub use self::registry::MoverRegistry;
pub use self::service::Fleet;
pub use self::task_handle::TaskHandle;
pub use self::view::{EnrolledMover, MoverView, TaskEvent};
