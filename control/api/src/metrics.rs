//! `/metrics` in Prometheus' text format (version 0.0.4).
//!
//! In: [`Numbers`]. Out: text. Pure. Own code, since the numbers come from gantryd's state at the
//! moment of the question: a client library would keep a second copy of them.

use std::fmt::Write as _;

use crate::backend::Numbers;

/// Media type of the text.
pub const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.0.push_str(if at == 0 { "{" } else { "," });
            let _ = write!(self.0, "{label}=\"{}\"", escaped(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.metric(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// A label's value: the format knows three escapes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The page; `answers` are the API's own, by the first digit of their status.
pub(crate) fn page(numbers: &Numbers, answers: [u64; 6]) -> String {
    let mut page = Page(String::new());
    let name = "gantry_sessions_total";
    page.metric(name, "counter", "Sessions that ended, by kind and result.");
    for (kind, result, count) in &numbers.sessions_ended {
        page.sample(name, &[("kind", kind), ("result", result)], *count);
    }
    let running = numbers.sessions_running;
    page.one("gantry_sessions_running", "gauge", "Sessions that are not over.", running);
    page.one("gantry_tasks_running", "gauge", "Tasks that run.", numbers.tasks_running);
    page.one("gantry_tasks_waiting", "gauge", "Tasks that wait for a slot.", numbers.tasks_waiting);
    let help = "Bytes read from sources.";
    page.one("gantry_read_bytes_total", "counter", help, numbers.read_bytes);
    let help = "Bytes sent between movers.";
    page.one("gantry_transferred_bytes_total", "counter", help, numbers.transferred_bytes);
    let (free, capacity) = ("gantry_repository_free_bytes", "gantry_repository_capacity_bytes");
    page.metric(free, "gauge", "Free bytes of a repository's file system.");
    for (name, bytes, _) in &numbers.repositories {
        page.sample(free, &[("repository", name)], *bytes);
    }
    page.metric(capacity, "gauge", "Bytes of a repository's file system.");
    for (name, _, bytes) in &numbers.repositories {
        page.sample(capacity, &[("repository", name)], *bytes);
    }
    let (connected, enrolled) = ("gantry_movers_connected", "gantry_movers_enrolled");
    page.metric(connected, "gauge", "Movers that are connected.");
    for (role, count, _) in &numbers.movers {
        page.sample(connected, &[("role", role)], *count);
    }
    page.metric(enrolled, "gauge", "Movers that have enrolled and were not revoked.");
    for (role, _, count) in &numbers.movers {
        page.sample(enrolled, &[("role", role)], *count);
    }
    let name = "gantry_api_answers_total";
    page.metric(name, "counter", "Answers of the API, by the class of their status.");
    for (digit, count) in answers.iter().enumerate().skip(2) {
        page.sample(name, &[("status", &format!("{digit}xx"))], *count);
    }
    page.0
}

#[cfg(test)]
mod tests {
    use super::page;
    use crate::backend::Numbers;

    #[test]
    fn names_cannot_break_out_of_their_labels() {
        let numbers = Numbers {
            sessions_ended: vec![("backup".into(), "success".into(), 3)],
            repositories: vec![("a\"} 1\ngantry_x \\".into(), 5, 9)],
            read_bytes: 7,
            ..Numbers::default()
        };
        let text = page(&numbers, [0, 0, 4, 0, 1, 0]);
        for line in [
            "gantry_sessions_total{kind=\"backup\",result=\"success\"} 3",
            "gantry_repository_free_bytes{repository=\"a\\\"} 1\\ngantry_x \\\\\"} 5",
            "gantry_read_bytes_total 7",
            "gantry_api_answers_total{status=\"4xx\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.lines().any(|line| line.starts_with("gantry_x")));
    }
}
