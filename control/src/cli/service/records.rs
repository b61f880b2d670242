//! Records of gantryd's configuration: listed, shown, made, changed, deleted.
//!
//! In: fields by name, or a whole record as JSON. Out: the record as it is kept. Other records are
//! named by name; their ids are looked up. A password comes from a file.

use gantry_common::failure::Failure;
use gantry_http::Method;
use serde_json::{Map, Value};

use super::table::{Column, Show};
use super::{Asked, Fields, RecordCommand, read_secret, read_text, show, usage};
use crate::client::Client;

/// A kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vcenter,
    Proxy,
    Repository,
    Job,
    Traffic,
    Credential,
}

impl Kind {
    /// Where its records stand.
    pub(super) fn path(self) -> &'static str {
        match self {
            Kind::Vcenter => "vcenters",
            Kind::Proxy => "proxies",
            Kind::Repository => "repositories",
            Kind::Job => "jobs",
            Kind::Traffic => "traffic-rules",
            Kind::Credential => "credentials",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Vcenter => "vCenter",
            Kind::Proxy => "proxy",
            Kind::Repository => "repository",
            Kind::Job => "job",
            Kind::Traffic => "traffic rule",
            Kind::Credential => "credential",
        }
    }

    fn columns(self) -> &'static [Column] {
        match self {
            Kind::Vcenter => &[
                ("NAME", "/name", Show::Plain),
                ("URL", "/url", Show::Plain),
                ("USER", "/user", Show::Plain),
            ],
            Kind::Proxy => &[
                ("NAME", "/name", Show::Plain),
                ("ENABLED", "/enabled", Show::Plain),
                ("SLOTS", "/task_slots", Show::Plain),
                ("MODES", "/modes", Show::Plain),
                ("MOVER", "/mover", Show::Plain),
            ],
            Kind::Repository => &[
                ("NAME", "/name", Show::Plain),
                ("ADDRESS", "/address", Show::Plain),
                ("SLOTS", "/task_slots", Show::Plain),
                ("ID", "/repository_id", Show::Plain),
            ],
            Kind::Job => &[
                ("NAME", "/name", Show::Plain),
                ("ENABLED", "/enabled", Show::Plain),
                ("SCHEDULE", "/schedule/kind", Show::Plain),
                ("PATTERNS", "/selection/patterns", Show::Plain),
                ("FOLDERS", "/selection/folders", Show::Plain),
            ],
            Kind::Traffic => &[
                ("NAME", "/name", Show::Plain),
                ("BYTES/S", "/rate_bytes_per_second", Show::Bytes),
            ],
            Kind::Credential => &[("NAME", "/name", Show::Plain), ("USER", "/user", Show::Plain)],
        }
    }
}

/// The record of this name or id.
pub(super) async fn find(client: &Client, kind: Kind, name: &str) -> Result<Value, Failure> {
    let all = client.get(kind.path()).await?;
    let items = all["items"].as_array().map_or(&[][..], Vec::as_slice);
    let found = items.iter().find(|one| one["name"] == name || one["id"] == name);
    found.cloned().ok_or_else(|| {
        let known: Vec<&str> = items.iter().filter_map(|one| one["name"].as_str()).collect();
        usage(format!("there is no {} '{name}'; there are: {}", kind.name(), known.join(", ")))
    })
}

/// Its path, by name or id.
pub(super) async fn path(client: &Client, kind: Kind, name: &str) -> Result<String, Failure> {
    let record = find(client, kind, name).await?;
    Ok(format!("{}/{}", kind.path(), record["id"].as_str().unwrap_or_default()))
}

pub(super) async fn run(kind: Kind, command: RecordCommand) -> Result<(), Failure> {
    match command {
        RecordCommand::List { asked } => {
            let all = asked.client()?.get(kind.path()).await?;
            show(&asked, &all, kind.columns())
        }
        RecordCommand::Show { name, asked } => {
            let record = find(&asked.client()?, kind, &name).await?;
            super::say_json(&record)
        }
        RecordCommand::Add { name, fields, asked } => {
            let client = asked.client()?;
            let mut record = Map::new();
            record.insert("name".into(), name.into());
            let draft = fill(&client, kind, record, &fields).await?;
            kept(&asked, kind, &client.post(kind.path(), &draft).await?)
        }
        RecordCommand::Edit { name, fields, asked } => {
            let client = asked.client()?;
            let Value::Object(record) = find(&client, kind, &name).await? else {
                return Err(usage("the server's record is none"));
            };
            let path = path(&client, kind, &name).await?;
            let draft = fill(&client, kind, record, &fields).await?;
            kept(&asked, kind, &client.call(Method::PUT, &path, Some(&draft)).await?)
        }
        RecordCommand::Remove { name, asked } => {
            let client = asked.client()?;
            let path = path(&client, kind, &name).await?;
            client.call(Method::DELETE, &path, None).await.map(drop)
        }
    }
}

fn kept(asked: &Asked, kind: Kind, record: &Value) -> Result<(), Failure> {
    show(asked, record, kind.columns())
}

/// The record with the fields that were given.
async fn fill(
    client: &Client,
    kind: Kind,
    mut record: Map<String, Value>,
    fields: &Fields,
) -> Result<Value, Failure> {
    if let Some(file) = &fields.file {
        let given: Map<String, Value> = serde_json::from_str(&read_text(file)?)
            .map_err(|error| usage(format!("{}: {error}", file.display())))?;
        let name = record.get("name").cloned();
        record.extend(given);
        // The name that was typed counts.
        name.map(|name| record.insert("name".into(), name));
    }
    let mut record = Value::Object(record);
    for field in &fields.set {
        set(&mut record, field)?;
    }
    if kind == Kind::Job {
        for (path, of) in NAMED {
            for place in places(&mut record, path) {
                if let Some(name) = place.as_str() {
                    *place = find(client, *of, name).await?["id"].clone();
                }
            }
        }
    }
    if matches!(kind, Kind::Proxy | Kind::Repository) {
        fill_mover(client, kind, &mut record).await?;
    }
    if let Some(file) = &fields.password_file {
        record["password"] = read_secret(file)?.reveal().into();
    }
    Ok(record)
}

/// What a job names by name or id: the field's path, in which `*` stands for each entry of a list.
const NAMED: &[(&str, Kind)] = &[
    ("/vcenter", Kind::Vcenter),
    ("/repository", Kind::Repository),
    ("/proxies/proxies/*", Kind::Proxy),
    ("/schedule/job", Kind::Job),
    ("/application/credential", Kind::Credential),
    ("/application/vm_credentials/*/credential", Kind::Credential),
];

/// The values at a path that there are.
fn places<'a>(value: &'a mut Value, path: &str) -> Vec<&'a mut Value> {
    let mut found = vec![value];
    for part in path.split('/').skip(1) {
        found = found
            .into_iter()
            .flat_map(|value| match value {
                Value::Array(all) if part == "*" => all.iter_mut().collect(),
                Value::Object(fields) => fields.get_mut(part).into_iter().collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
    }
    found
}

/// A mover by its name; a repository's address and id as its mover serves it.
async fn fill_mover(client: &Client, kind: Kind, record: &mut Value) -> Result<(), Failure> {
    let Some(name) = record["mover"].as_str() else {
        return Err(usage("which mover? give --set mover=NAME (see gantry mover list)"));
    };
    let movers = client.get("movers").await?;
    let items = movers["items"].as_array().map_or(&[][..], Vec::as_slice);
    let is_it = |one: &&Value| one["mover"]["name"] == name || one["mover"]["pin"] == name;
    let mover = items.iter().find(is_it).ok_or_else(|| {
        usage(format!("there is no mover '{name}'; invite it first: gantry mover invite"))
    })?;
    record["mover"] = mover["mover"]["pin"].clone();
    let served = &mover["repository"];
    if kind == Kind::Repository && !served.is_null() {
        if record["repository_id"].is_null() {
            record["repository_id"] = served["id"].clone();
        }
        if record["address"].is_null() {
            let host = mover["host"].as_str().unwrap_or_default();
            record["address"] = format!("gantry://{host}:{}", served["port"]).into();
        }
    }
    Ok(())
}

/// Sets one `field.of.field=value`.
fn set(record: &mut Value, assignment: &str) -> Result<(), Failure> {
    let refused = |why: &str| usage(format!("--set {assignment}: {why}"));
    let (field, text) = assignment.split_once('=').ok_or_else(|| refused("give FIELD=VALUE"))?;
    if field == "password" || field.is_empty() {
        return Err(usage("a password is no argument: give --password-file FILE"));
    }
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let mut place = record;
    for part in field.split('.') {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        let Value::Object(fields) = place else {
            return Err(refused("a part of the field's path is no object"));
        };
        place = fields.entry(part).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{places, set};
    use serde_json::json;

    #[test]
    fn what_is_named_is_found_wherever_it_stands() {
        let mut record = json!({
            "vcenter": "v", "proxies": { "kind": "chosen", "proxies": ["a", "b"] },
            "application": { "vm_credentials": [{ "credential": "c" }, { "credential": "d" }] },
        });
        let mut at = |path: &str| -> Vec<String> {
            let found = places(&mut record, path);
            found.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        assert_eq!(at("/vcenter"), ["v"]);
        assert_eq!(at("/proxies/proxies/*"), ["a", "b"]);
        assert_eq!(at("/application/vm_credentials/*/credential"), ["c", "d"]);
        assert!(at("/schedule/job").is_empty() && at("/vcenter/*").is_empty());
    }

    #[test]
    fn fields_are_set_by_path_as_json_or_text() {
        let mut record = json!({ "name": "nightly" });
        for assignment in
            ["selection.patterns=[\"web*\"]", "retries.count=2", "description=a=b", "enabled=true"]
        {
            set(&mut record, assignment).unwrap();
        }
        assert_eq!(
            record,
            json!({
                "name": "nightly", "selection": { "patterns": ["web*"] }, "retries": { "count": 2 },
                "description": "a=b", "enabled": true,
            })
        );
        for wrong in ["name", "name.first=x", "password=secret"] {
            let refused = set(&mut record, wrong).unwrap_err();
            assert!(wrong != "password=secret" || !refused.message.contains("secret"));
        }
    }
}
