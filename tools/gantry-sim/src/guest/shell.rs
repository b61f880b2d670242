//! The language of a guest's programs, one command at a time, without waiting.
//!
//! In: a program's path, its arguments as one text, the guest's files. Out: what happens next:
//! a pause, an end, writes stopped. A command line is words with quotes, `$1`, `$NAME`, and
//! redirections (`>`, `>>`, `2>`, `2>&1`, `&>`); a script is command lines. The commands:
//!
//! | command | what it does |
//! | --- | --- |
//! | `echo TEXT…` | writes to standard output |
//! | `cat FILE` | writes a file to standard output |
//! | `write FILE TEXT…`, `append FILE TEXT…` | writes a file |
//! | `rm FILE…` | takes files away |
//! | `sleep SECONDS` | waits (fractions too) |
//! | `exit [CODE]`, `true`, `false` | ends, succeeds, fails |
//! | `stop-writes`, `start-writes` | the machine's built-in guest stops and goes on writing to disks |
//! | `hang` | never ends |
//! | `sh FILE`, `sh -c 'LINE'`, `/PATH` | runs a script |
//! | `set`, `export`, `sync`, `chmod` | accepted; `set -e` ends a script at the first failure |
//!
//! Anything else is "not found" (127), as in a shell.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::files::Files;
use crate::limits;

/// What a process does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The next command at once.
    Next,
    /// The next command after a pause.
    Sleep(Duration),
    /// Nothing ever.
    Hang,
    /// The machine's built-in guest stops (false) or goes on (true) writing, then the next command.
    Writes(bool),
    /// It has ended with this code.
    Ended(i32),
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq)]
enum Sink {
    Nowhere,
    File(String),
}

#[derive(Debug, Clone, PartialEq)]
struct Sinks {
    out: Sink,
    err: Sink,
}

/// A script that runs.
#[derive(Debug)]
struct Frame {
    lines: VecDeque<String>,
    words: Vec<String>,
    sinks: Sinks,
    strict: bool,
}

/// A running program.
#[derive(Debug)]
pub struct Shell {
    frames: Vec<Frame>,
    environment: BTreeMap<String, String>,
    code: i32,
    commands: usize,
}

/// The programs that are there without a file.
const PROGRAMS: &[&str] = &[
    "/bin/sh",
    "/bin/bash",
    "/usr/bin/sh",
    "/usr/bin/bash",
    "/bin/echo",
    "/bin/cat",
    "/bin/sleep",
    "/bin/true",
    "/bin/false",
    "/bin/rm",
    "/bin/sync",
    "/usr/bin/sleep",
];

/// Whether a path is a program that is there without a file.
#[must_use]
pub fn is_program(path: &str) -> bool {
    PROGRAMS.contains(&path)
}

impl Shell {
    /// A program with its arguments, as `StartProgramInGuest` gives them: the guest's tools hand both
    /// to a shell, so that redirections in arguments work.
    #[must_use]
    pub fn new(program: &str, arguments: &str, environment: BTreeMap<String, String>) -> Self {
        let line = format!("'{program}' {arguments}");
        let sinks = Sinks { out: Sink::Nowhere, err: Sink::Nowhere };
        let words = Vec::new();
        let frame = Frame { lines: VecDeque::from([line]), words, sinks, strict: false };
        Self { frames: vec![frame], environment, code: 0, commands: 0 }
    }

    /// Does the next command.
    pub fn step(&mut self, files: &mut Files) -> Step {
        self.commands += 1;
        if self.commands > limits::GUEST_COMMANDS_MAX {
            return Step::Ended(137);
        }
        let Some(frame) = self.frames.last_mut() else { return Step::Ended(self.code) };
        if frame.strict && self.code != 0 {
            frame.lines.clear();
        }
        let Some(line) = frame.lines.pop_front() else {
            self.frames.pop();
            return Step::Next;
        };
        let words = frame.words.clone();
        let parsed = parse(&line, &words, &self.environment);
        let sinks = frame.sinks.clone();
        match parsed.and_then(|tokens| redirect(tokens, sinks, files)) {
            Ok((words, sinks)) => self.command(&words, &sinks, files),
            Err(why) => {
                self.code = 2;
                let sinks = self.frames.last().map(|frame| frame.sinks.clone());
                if let Some(sinks) = sinks {
                    put(files, &sinks.err, &format!("sh: {why}\n"));
                }
                Step::Next
            }
        }
    }

    fn command(&mut self, words: &[String], sinks: &Sinks, files: &mut Files) -> Step {
        let Some((name, rest)) = words.split_first() else { return Step::Next };
        let base = name.rsplit('/').next().unwrap_or(name);
        let builtin = !name.contains('/') || is_program(name);
        self.code = 0;
        match base {
            "sleep" if builtin => {
                let seconds = rest.first().and_then(|text| text.parse::<f64>().ok());
                let seconds = seconds.filter(|seconds| (0.0..1e6).contains(seconds));
                return Step::Sleep(Duration::from_secs_f64(seconds.unwrap_or(0.0)));
            }
            "hang" if builtin => return Step::Hang,
            "stop-writes" if builtin => return Step::Writes(false),
            "start-writes" if builtin => return Step::Writes(true),
            "exit" if builtin => {
                self.code = rest.first().and_then(|code| code.parse().ok()).unwrap_or(self.code);
                self.frames.pop();
            }
            "true" | "sync" | "export" | "chmod" if builtin => {}
            "false" if builtin => self.code = 1,
            "set" if builtin => {
                let strict = rest.iter().any(|word| word.starts_with('-') && word.contains('e'));
                if let Some(frame) = self.frames.last_mut() {
                    frame.strict |= strict;
                }
            }
            "echo" if builtin => put(files, &sinks.out, &format!("{}\n", rest.join(" "))),
            "cat" | "rm" | "write" | "append" if builtin => {
                if let Err(why) = on_files(base, rest, sinks, files) {
                    put(files, &sinks.err, &format!("{base}: {why}\n"));
                    self.code = 1;
                }
            }
            "sh" | "bash" if builtin => match rest {
                [flag, line, words @ ..] if flag == "-c" => {
                    self.enter(line.lines().map(str::to_owned).collect(), words.to_vec(), sinks);
                }
                _ => {
                    let script = rest.iter().position(|word| !word.starts_with('-'));
                    if let Some(at) = script {
                        self.script(&rest[at..], sinks, files);
                    }
                }
            },
            _ => self.script(words, sinks, files),
        }
        Step::Next
    }

    fn enter(&mut self, lines: VecDeque<String>, words: Vec<String>, sinks: &Sinks) {
        if self.frames.len() >= limits::GUEST_SCRIPT_DEPTH_MAX {
            self.code = 126;
            return;
        }
        self.frames.push(Frame { lines, words, sinks: sinks.clone(), strict: false });
    }

    fn script(&mut self, words: &[String], sinks: &Sinks, files: &mut Files) {
        let Some((path, _)) = words.split_first() else { return };
        let Ok(content) = files.read(path) else {
            put(files, &sinks.err, &format!("sh: {path}: not found\n"));
            self.code = 127;
            return;
        };
        let text = String::from_utf8_lossy(content).into_owned();
        self.enter(text.lines().map(str::to_owned).collect(), words.to_vec(), sinks);
    }
}

fn on_files(
    name: &str,
    rest: &[String],
    sinks: &Sinks,
    files: &mut Files,
) -> Result<(), super::files::FileError> {
    let Some((path, words)) = rest.split_first() else { return Ok(()) };
    match name {
        "cat" => {
            let text = String::from_utf8_lossy(files.read(path)?).into_owned();
            put(files, &sinks.out, &text);
            Ok(())
        }
        "rm" => {
            let paths = rest.iter().filter(|path| !path.starts_with('-'));
            let force = rest.iter().any(|word| word.starts_with('-') && word.contains('f'));
            for path in paths {
                let gone = files.delete(path);
                if !force {
                    gone?;
                }
            }
            Ok(())
        }
        "write" => files.write(path, format!("{}\n", words.join(" ")).into_bytes(), None),
        _ => files.append(path, format!("{}\n", words.join(" ")).as_bytes()),
    }
}

/// Output that cannot be written is lost, as on a full disk.
fn put(files: &mut Files, sink: &Sink, text: &str) {
    if let Sink::File(path) = sink {
        let _ = files.append(path, text.as_bytes());
    }
}

/// A piece of a command line.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// Which output (1, 2, or 0 for both), and whether the file is added to.
    Redirect(u8, bool),
    /// `2>&1`
    ErrToOut,
}

/// Takes a command line apart.
fn parse(
    line: &str,
    words: &[String],
    environment: &BTreeMap<String, String>,
) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line.trim();
    while let Some(letter) = rest.chars().next() {
        let mut taken = letter.len_utf8();
        match letter {
            ' ' | '\t' | ';' => tokens.extend(word.take().map(Token::Word)),
            '#' if word.is_none() => break,
            '>' | '&' => {
                let (found, length) = redirection(rest, word.as_deref())?;
                if matches!(word.as_deref(), Some("1" | "2")) {
                    word = None;
                }
                tokens.extend(word.take().map(Token::Word));
                tokens.push(found);
                taken = length;
            }
            '\'' => {
                let end = rest[1..].find('\'').ok_or("a quote is not closed")?;
                word.get_or_insert_default().push_str(&rest[1..=end]);
                taken = end + 2;
            }
            '"' => {
                let end = rest[1..].find('"').ok_or("a quote is not closed")?;
                let text = expand(&rest[1..=end], words, environment);
                word.get_or_insert_default().push_str(&text);
                taken = end + 2;
            }
            '\\' => {
                if let Some(next) = rest[1..].chars().next() {
                    word.get_or_insert_default().push(next);
                    taken += next.len_utf8();
                }
            }
            '$' => {
                let end = rest[1..].find(|c: char| !c.is_alphanumeric() && !"_{}".contains(c));
                let end = end.map_or(rest.len(), |end| end + 1);
                let text = expand(&rest[..end], words, environment);
                word.get_or_insert_default().push_str(&text);
                taken = end;
            }
            other => word.get_or_insert_default().push(other),
        }
        rest = &rest[taken..];
    }
    tokens.extend(word.map(Token::Word));
    Ok(tokens)
}

fn redirection(rest: &str, before: Option<&str>) -> Result<(Token, usize), String> {
    if let Some(after) = rest.strip_prefix(">&1") {
        return match before {
            Some("2") => Ok((Token::ErrToOut, rest.len() - after.len())),
            _ => Err("only 2>&1 is known".into()),
        };
    }
    if let Some(after) = rest.strip_prefix("&>") {
        return Ok((Token::Redirect(0, false), rest.len() - after.len()));
    }
    if rest.starts_with('&') {
        return Err("& and && are not known".into());
    }
    let which = if before == Some("2") { 2 } else { 1 };
    let more = rest.starts_with(">>");
    Ok((Token::Redirect(which, more), if more { 2 } else { 1 }))
}

/// Puts in what `$1`, `$NAME` and `${NAME}` stand for.
fn expand(text: &str, words: &[String], environment: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut parts = text.split('$');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, after) = match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
            Some(found) => found,
            None => {
                let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
                part.split_at(end.unwrap_or(part.len()))
            }
        };
        match name.parse::<usize>() {
            Ok(at) => out.push_str(words.get(at).map_or("", String::as_str)),
            Err(_) => out.push_str(environment.get(name).map_or("", String::as_str)),
        }
        out.push_str(after);
    }
    out
}

/// Separates words from redirections; files that are written anew are emptied here.
fn redirect(
    tokens: Vec<Token>,
    mut sinks: Sinks,
    files: &mut Files,
) -> Result<(Vec<String>, Sinks), String> {
    let mut words = Vec::new();
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        match token {
            Token::Word(word) => words.push(word),
            Token::ErrToOut => sinks.err = sinks.out.clone(),
            Token::Redirect(which, more) => {
                let Some(Token::Word(path)) = tokens.next() else {
                    return Err("a redirection names no file".into());
                };
                if path == "/dev/null" {
                    set(&mut sinks, which, &Sink::Nowhere);
                    continue;
                }
                let done = if more {
                    files.append(&path, b"")
                } else {
                    files.write(&path, Vec::new(), None)
                };
                done.map_err(|error| error.to_string())?;
                set(&mut sinks, which, &Sink::File(path));
            }
        }
    }
    Ok((words, sinks))
}

fn set(sinks: &mut Sinks, which: u8, sink: &Sink) {
    if which != 2 {
        sinks.out = sink.clone();
    }
    if which != 1 {
        sinks.err = sink.clone();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::files::Files;
    use super::{Shell, Step};

    /// Runs to the end; what it did on the way, and its code.
    fn run(files: &mut Files, program: &str, arguments: &str) -> (Vec<Step>, i32) {
        let environment = BTreeMap::from([("WHO".to_owned(), "guest".to_owned())]);
        let mut shell = Shell::new(program, arguments, environment);
        let mut steps = Vec::new();
        loop {
            match shell.step(files) {
                Step::Next => {}
                Step::Ended(code) => return (steps, code),
                Step::Hang => return (steps, -1),
                step => steps.push(step),
            }
        }
    }

    #[test]
    fn a_script_runs_with_its_output_in_a_file() {
        let mut files = Files::default();
        let script = "#!/bin/sh\nset -e\necho \"freeze $1 by $WHO\" # why\nstop-writes\nsleep 0.5\n\
                      write /tmp/mark one  two\nnonsense\necho not reached\n";
        files.write("/tmp/s.sh", script.into(), Some(0o755)).expect("a file");
        let (steps, code) = run(&mut files, "/tmp/s.sh", "'all disks' > /tmp/out 2>&1");
        assert_eq!(code, 127);
        assert_eq!(steps, [Step::Writes(false), Step::Sleep(Duration::from_millis(500))]);
        let out = String::from_utf8_lossy(files.read("/tmp/out").expect("output")).into_owned();
        assert_eq!(out, "freeze all disks by guest\nsh: nonsense: not found\n");
        assert_eq!(files.read("/tmp/mark"), Ok(&b"one two\n"[..]));
    }

    #[test]
    fn shells_exits_and_mistakes() {
        let mut files = Files::default();
        assert_eq!(run(&mut files, "/bin/sh", "-c 'exit 7'").1, 7);
        assert_eq!(run(&mut files, "/bin/sh", "-c 'echo a > /tmp/x'").1, 0);
        assert_eq!(run(&mut files, "/bin/cat", "/tmp/x >>/tmp/y").1, 0);
        assert_eq!(files.read("/tmp/y"), Ok(&b"a\n"[..]));
        assert_eq!(run(&mut files, "/bin/cat", "/tmp/none 2>/tmp/err >/dev/null").1, 1);
        assert!(files.read("/tmp/err").is_ok_and(|text| text.starts_with(b"cat: /tmp/none")));
        assert_eq!(run(&mut files, "/bin/echo", "'open").1, 2);
        assert_eq!(run(&mut files, "/bin/echo", "a && b").1, 2);
        assert_eq!(run(&mut files, "/bin/sh", "-c hang").1, -1);
    }

    #[test]
    fn a_script_that_calls_itself_ends() {
        let mut files = Files::default();
        files.write("/tmp/s", b"/tmp/s\n".to_vec(), None).expect("a file");
        assert_eq!(run(&mut files, "/tmp/s", "").1, 126);
    }

    #[test]
    fn rubbish_ends_too() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut files = Files::default();
        for _ in 0..2000 {
            let letters = (0..random.usize(..40))
                .map(|_| *random.choice(b" >&|'\"$12{}\\/abc;#\xc3").expect("letters"));
            let text = String::from_utf8_lossy(&letters.collect::<Vec<u8>>()).into_owned();
            run(&mut files, "/bin/echo", &text);
        }
    }
}
