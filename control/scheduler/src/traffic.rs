//! Traffic rules: how fast each task may send.
//!
//! Gantryd measures what each flow sends, asks [`shares`] twice a second, and tells the source movers;
//! their pacers enforce. So a rule holds over all proxies together, and what one flow does not use goes
//! to the others at the next look.
//!
//! In: rules, limits, flows, what they want, the instant. Out: a rate for each flow, or none. Pure.

mod network;
mod rules;
mod fill;
mod shares;

pub use network::{NetworkError, NetworkRange};
pub use rules::{TrafficRule, TrafficRules};
pub use shares::{Demand, Flow, FlowId, JobLimit, Measured, Share, demand, shares};

#[cfg(test)]
mod tests;
