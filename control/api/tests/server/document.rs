//! The OpenAPI document: every route, every schema that it refers to, who may.

use std::collections::BTreeSet;

use gantry_api::access::Access;
use gantry_api::routes;
use serde_json::Value;

fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn it_names_every_route_and_what_it_refers_to_is_there() {
    let document = serde_json::to_value(routes::document()).expect("JSON");
    let mut names = BTreeSet::new();
    for route in routes::all() {
        let method = route.method.as_str().to_ascii_lowercase();
        let operation = &document["paths"][&route.path][&method];
        let name = operation["operationId"].as_str().expect("an operation's name");
        assert!(names.insert(name.to_owned()), "{name} stands twice");
        let secured = operation["security"].is_array();
        assert_eq!(secured, route.access != Access::Public, "{name}");
        let role = match route.access {
            Access::Public => None,
            Access::Role(role) => Some(routes::role_name(role)),
        };
        assert_eq!(operation["x-gantry-role"].as_str(), role, "{name}");
    }
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 30);
    for reference in found {
        let place = reference.trim_start_matches('#');
        assert!(document.pointer(place).is_some(), "{reference} is not there");
    }
}

#[test]
fn a_draft_has_no_id_and_its_secret_is_only_written() {
    let document = serde_json::to_value(routes::document()).expect("JSON");
    let schemas = &document["components"]["schemas"];
    for (draft, shown) in
        [("VCenterDraft", "VCenter"), ("CredentialRecordDraft", "CredentialRecord")]
    {
        let fields = &schemas[draft]["properties"];
        assert_eq!(fields["password"]["writeOnly"], true, "{draft}");
        assert!(fields["id"].is_null() && !schemas[shown]["properties"]["id"].is_null());
        assert!(schemas[shown]["properties"]["password"].is_null());
    }
}

/// Found by `cargo xtask fuzz-api`: a session that has not ended has no totals yet.
#[test]
fn the_totals_of_a_session_may_be_told_as_nothing() {
    let document = serde_json::to_value(routes::document()).expect("JSON");
    let more = &document["components"]["schemas"]["SessionTotals"]["properties"]["more"];
    let kinds = more["type"].as_array().cloned().unwrap_or_default();
    assert!(kinds.iter().any(|kind| kind == "null"), "{more}");
}
