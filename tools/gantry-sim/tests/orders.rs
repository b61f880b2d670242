//! The program with `--orders`: drills and questions by lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

#[test]
fn orders_are_answered_line_by_line_and_their_end_ends_the_program() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gantry-sim"))
        .arg("--orders")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut orders = child.stdin.take().expect("a pipe");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut line = || -> Value {
        let line = lines.next().expect("a line").expect("readable");
        serde_json::from_str(&line).expect("JSON")
    };
    assert!(line()["url"].is_string());
    let mut ask = |order: Value| {
        writeln!(orders, "{order}").expect("it listens");
        line()
    };
    let machine = "web0";
    assert_eq!(ask(json!({ "kind": "open-snapshots" })), json!({ "snapshots": [] }));
    let compare = json!({ "kind": "compare", "machine": machine, "image": "/dev/null" });
    let error = ask(compare.clone())["error"].take();
    assert!(error.as_str().is_some_and(|text| text.contains("watch")), "{error}");
    assert_eq!(ask(json!({ "kind": "watch", "machine": machine })), json!({}));
    assert_eq!(ask(json!({ "kind": "snapshots", "machine": machine })), json!({ "snapshots": [] }));
    assert!(ask(json!({ "kind": "watch", "machine": "nobody" }))["error"].is_string());
    assert!(ask(json!({ "kind": "nonsense" }))["error"].is_string());
    drop(orders);
    assert!(child.wait().expect("it ends").success());
}
