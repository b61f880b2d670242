//! Drills: what goes wrong on demand, by file, command line or `POST /gantry-sim/faults`.
//!
//! In: [`Command`]s as JSON. Out: rules that later calls ask, or an effect at once. All random
//! choices come from the simulator's seed, so that a drill can be done again.

use std::time::Duration;

use serde::Deserialize;

use crate::fault::Fault;

mod command;
mod effect;
mod judge;

pub use command::{Command, When};
pub use effect::{Writer, apply, guest_start, parse, pause, read};
pub use judge::{Answer, Question, judge};

/// What is to happen to one call.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Answer this instead of doing the call.
    pub fault: Option<Fault>,
    /// Wait so long first.
    pub delay: Duration,
    /// Cut the connection and do nothing.
    pub drop: bool,
    /// Do the call, then cut the connection.
    pub lose_answer: bool,
    /// End the caller's session first.
    pub expire_session: bool,
    /// What happens to the task that the call starts.
    pub task: TaskVerdict,
}

/// What is to happen to one task.
#[derive(Debug, Clone, Default)]
pub struct TaskVerdict {
    /// End with this error.
    pub fault: Option<Fault>,
    /// Do the work all the same before it ends with the error.
    pub done: bool,
    /// Take so much longer.
    pub delay: Duration,
}

/// A rule that calls ask.
#[derive(Debug)]
struct Rule {
    command: Command,
    skip: u64,
    left: u64,
    hits: u64,
}

/// The rules that are on.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    random: fastrand::Rng,
}

/// One call, as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// The method.
    pub method: &'a str,
    /// The object's id.
    pub object: &'a str,
    /// The machine's name, if it is about one.
    pub machine: Option<&'a str>,
    /// `vcenter`, or the host's name.
    pub endpoint: &'a str,
}

/// A rule as `GET /gantry-sim/faults` shows it.
#[derive(Debug, serde::Serialize)]
pub struct RuleReport {
    /// The rule.
    pub rule: String,
    /// How often it was applied.
    pub hits: u64,
    /// How often it will still be; absent for ever.
    pub left: Option<u64>,
}

impl Rules {
    /// No rules.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), random: fastrand::Rng::with_seed(seed ^ 0xd811) }
    }

    /// Adds a rule.
    pub fn add(&mut self, command: Command) {
        let Some(when) = command.when() else { return };
        let (skip, left) = (when.skip, when.count.unwrap_or(u64::MAX));
        self.rules.push(Rule { command, skip, left, hits: 0 });
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// The rules and how often each was applied.
    #[must_use]
    pub fn report(&self) -> Vec<RuleReport> {
        let report = |rule: &Rule| RuleReport {
            rule: format!("{:?}", rule.command),
            hits: rule.hits,
            left: (rule.left != u64::MAX).then_some(rule.left),
        };
        self.rules.iter().map(report).collect()
    }

    /// What is to happen to a call.
    pub fn decide(&mut self, about: About<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for rule in &mut self.rules {
            let Some(when) = rule.command.when() else { continue };
            if rule.left == 0 || !when.fits(about) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if self.random.f64() >= when.probability {
                continue;
            }
            rule.hits += 1;
            if rule.left != u64::MAX {
                rule.left -= 1;
            }
            rule.command.judge(&mut verdict);
        }
        verdict
    }
}

/// A fault type that a rule names.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct FaultType(String);

impl TryFrom<String> for FaultType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if Fault::is_known(&name) {
            return Ok(Self(name));
        }
        Err(format!("the simulator knows no fault {name}"))
    }
}

impl FaultType {
    /// A fault of it.
    #[must_use]
    pub fn fault(&self, message: Option<&String>) -> Fault {
        let text = message.cloned().unwrap_or_else(|| format!("{} (injected)", self.0));
        Fault::new(&self.0, text)
    }
}

#[cfg(test)]
mod tests {
    use super::{About, Command, Rules};

    const ABOUT: About<'_> = About {
        method: "CreateSnapshot_Task",
        object: "vm-7",
        machine: Some("web0"),
        endpoint: "vcenter",
    };

    fn command(json: &str) -> Command {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn a_rule_skips_counts_and_fits() {
        let mut rules = Rules::new(1);
        rules.add(command(
            r#"{"kind":"method-fault","fault":"TaskInProgress",
                "when":{"method":"CreateSnapshot_Task","object":"web0","skip":1,"count":2}}"#,
        ));
        let mut hits = |about| rules.decide(about).fault.is_some();
        assert!(!hits(About { method: "PowerOnVM_Task", ..ABOUT }));
        assert!(!hits(About { machine: Some("web1"), ..ABOUT }));
        assert_eq!([ABOUT; 4].map(&mut hits), [false, true, true, false]);
        assert_eq!(rules.report()[0].hits, 2);
    }

    #[test]
    fn chance_comes_from_the_seed() {
        let run = |seed| {
            let mut rules = Rules::new(seed);
            rules.add(command(r#"{"kind":"drop","when":{"probability":0.5}}"#));
            (0..200).map(|_| rules.decide(ABOUT).drop).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
        let dropped = run(3).iter().filter(|dropped| **dropped).count();
        assert!((60..140).contains(&dropped), "{dropped}");
    }

    #[test]
    fn mistakes_in_commands_are_told() {
        for bad in [
            r#"{"kind":"method-fault","fault":"NoSuchFault"}"#,
            r#"{"kind":"nonsense"}"#,
            r#"{"kind":"drop","when":{"methods":"x"}}"#,
            r#"{"kind":"drop","when":{"probability":2}}"#,
        ] {
            assert!(serde_json::from_str::<Command>(bad).is_err(), "{bad}");
        }
    }
}
