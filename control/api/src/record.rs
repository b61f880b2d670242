//! Records as they come from a client: without what the server sets, with what it never shows.
//!
//! In: a JSON object. Out: a [`Draft`]: the record with its id, and the secret that came along, if
//! the kind of record has one. Invariant: a secret is in a draft only, never in a record.

use std::marker::PhantomData;

use axum::extract::Request;
use gantry_common::secret::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};

use crate::call::{Content, Schemas, json_body, json_bytes, refused, unreadable};
use crate::limits;
use crate::model::{CredentialRecord, Id, Invalid, Job, Proxy, Repository, TrafficRule, VCenter};
use crate::problem::Problem;

/// A kind of record that is listed, made, changed and deleted in the same way.
pub trait Record: Serialize + DeserializeOwned + ToSchema + Clone + Send + Sync + 'static {
    /// What it is called: `job`.
    const KIND: &'static str;
    /// Where it stands: `/api/v1/jobs`.
    const PATH: &'static str;
    /// The field with its secret, which is only ever written.
    const SECRET: Option<&'static str> = None;
    /// Fields that the server sets, besides `id`.
    const SET: &'static [&'static str] = &[];

    /// Its id.
    fn id(&self) -> Id;
    /// What people call it.
    fn name(&self) -> &str;
    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    fn validate(&self) -> Result<(), Invalid>;
}

macro_rules! record {
    ($type:ident, $kind:literal, $path:literal $(, $constant:ident = $value:expr)*) => {
        impl Record for $type {
            const KIND: &'static str = $kind;
            const PATH: &'static str = concat!("/api/v1/", $path);
            $(record!(@ $constant = $value);)*

            fn id(&self) -> Id {
                self.id
            }

            fn name(&self) -> &str {
                &self.name
            }

            fn validate(&self) -> Result<(), Invalid> {
                $type::validate(self)
            }
        }
    };
    (@ SECRET = $value:expr) => { const SECRET: Option<&'static str> = Some($value); };
    (@ SET = $value:expr) => { const SET: &'static [&'static str] = $value; };
}

record!(VCenter, "vcenter", "vcenters", SECRET = "password");
record!(Proxy, "proxy", "proxies", SET = &["created_ms"]);
record!(Repository, "repository", "repositories");
record!(Job, "job", "jobs");
record!(TrafficRule, "traffic", "traffic-rules");
record!(CredentialRecord, "credential", "credentials", SECRET = "password");

/// A record as a client sends it.
pub struct Draft<T> {
    fields: Map<String, Value>,
    secret: Option<Secret>,
    kind: PhantomData<fn() -> T>,
}

impl<T: Record> Draft<T> {
    /// A new record under this id, and its secret.
    ///
    /// # Errors
    /// 422: the field and what to do.
    pub fn into_new(self, id: Id, now_ms: u64) -> Result<(T, Option<Secret>), Problem> {
        self.into_record(id, |_| Value::from(now_ms))
    }

    /// What is to stand in the place of `old`, and its new secret.
    ///
    /// # Errors
    /// 422: the field and what to do.
    pub fn into_change(self, old: &T) -> Result<(T, Option<Secret>), Problem> {
        let shown = serde_json::to_value(old).map_err(|error| unreadable(&error))?;
        self.into_record(old.id(), |field| shown[field].clone())
    }

    fn into_record(
        mut self,
        id: Id,
        set: impl Fn(&str) -> Value,
    ) -> Result<(T, Option<Secret>), Problem> {
        self.fields.insert("id".to_owned(), Value::String(id.to_string()));
        for field in T::SET {
            self.fields.insert((*field).to_owned(), set(field));
        }
        let record: T = serde_json::from_value(Value::Object(self.fields))
            .map_err(|error| unreadable(&error))?;
        record.validate().map_err(refused)?;
        Ok((record, self.secret))
    }

    fn parse(bytes: &[u8]) -> Result<Draft<T>, Problem> {
        let mut fields: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
        // A record that was shown may be sent back as it is.
        fields.remove("id");
        T::SET.iter().for_each(|field| drop(fields.remove(*field)));
        let secret = match T::SECRET.and_then(|field| fields.remove(field)) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if (1..=limits::TEXT_BYTES_MAX).contains(&text.len()) => {
                Some(Secret::new(text))
            }
            Some(_) => {
                let (field, max) = (T::SECRET.unwrap_or_default(), limits::TEXT_BYTES_MAX);
                return Err(Problem::invalid(format!("{field}: give a text of 1 to {max} bytes")));
            }
        };
        Ok(Draft { fields, secret, kind: PhantomData })
    }
}

impl<T: Record> Content for Draft<T> {
    async fn read(request: Request) -> Result<Draft<T>, Problem> {
        Draft::parse(&json_bytes(request, limits::BODY_BYTES_MAX).await?)
    }

    fn describe(schemas: &mut Schemas) -> Option<RequestBody> {
        <T as ToSchema>::schemas(schemas);
        let name = format!("{}Draft", <T as ToSchema>::name());
        schemas.push((name.clone(), RefOr::T(Schema::Object(draft_schema::<T>()))));
        Some(json_body(Ref::from_schema_name(name).into()))
    }
}

/// The record's schema without what the server sets, and with the secret.
fn draft_schema<T: Record>() -> Object {
    let RefOr::T(Schema::Object(mut object)) = T::schema() else {
        unreachable!("records are objects with fields")
    };
    let set = ["id"].iter().chain(T::SET);
    for field in set {
        object.properties.remove(*field);
        object.required.retain(|required| required != field);
    }
    if let Some(field) = T::SECRET {
        let secret = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .description(Some("Written only; left out at a change: stays as it is."))
            .min_length(Some(1))
            .max_length(Some(limits::TEXT_BYTES_MAX))
            .write_only(true)
            .build();
        object.properties.insert(field.to_owned(), secret.into());
    }
    object.description = Some(format!("A {} as it is sent: the server sets its id.", T::KIND));
    object
}
