//! What a handler is given: who asks, values of the path, the query, the body; each read within
//! bounds, each describing itself for the OpenAPI document.
//!
//! In: a request that is let in. Out: a [`Call`], or a [`Problem`] that says what to correct.
//! Invariant: what a type reads is what it describes, so that document and server cannot differ.

use std::net::IpAddr;
use std::time::Duration;

use axum::RequestExt as _;
use axum::extract::{Query, RawPathParams, Request};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required, Schema};
use utoipa::{IntoParams, ToSchema};

use crate::access::Principal;
use crate::api::{Api, peer};
use crate::limits;
use crate::model::{Id, Invalid};
use crate::problem::Problem;

/// Named schemas.
pub type Schemas = Vec<(String, RefOr<Schema>)>;

/// A request as a handler sees it.
pub struct Call<P = (), Q = (), B = ()> {
    /// The server's state.
    pub api: Api,
    /// Who asks.
    pub who: Principal,
    /// Values of the path.
    pub path: P,
    /// The query.
    pub query: Q,
    /// The body.
    pub body: B,
    /// All headers.
    pub headers: HeaderMap,
    /// From where it comes.
    pub peer: IpAddr,
}

impl<P: Path, Q: Asked, B: Content> Call<P, Q, B> {
    pub(crate) async fn read(
        api: Api,
        who: Principal,
        mut request: Request,
    ) -> Result<Call<P, Q, B>, Problem> {
        let raw = request.extract_parts::<RawPathParams>().await;
        let raw = raw.map_err(|_| Problem::bad_request("the path is not valid text"))?;
        let values: Vec<&str> = raw.iter().map(|(_, value)| value).collect();
        let path = P::read(&values)?;
        let query = Q::read(request.uri())?;
        let headers = request.headers().clone();
        let peer = peer(&request);
        let body = B::read(request).await?;
        Ok(Call { api, who, path, query, body, headers, peer })
    }
}

/// Values of a path, in its order.
pub trait Path: Sized + Send {
    /// Reads them.
    ///
    /// # Errors
    /// 400: what is wrong.
    fn read(values: &[&str]) -> Result<Self, Problem>;
    /// Describes them; `names` are those in the path.
    fn describe(names: &[&str]) -> Vec<Parameter>;
}

impl Path for () {
    fn read(_values: &[&str]) -> Result<(), Problem> {
        Ok(())
    }

    fn describe(_names: &[&str]) -> Vec<Parameter> {
        Vec::new()
    }
}

impl Path for Id {
    fn read(values: &[&str]) -> Result<Id, Problem> {
        id(values.first().copied().unwrap_or_default())
    }

    fn describe(names: &[&str]) -> Vec<Parameter> {
        names.iter().map(|name| path_parameter(name, "An id.", id_schema())).collect()
    }
}

/// A record's id and a text within it, as `/repositories/{id}/points/{name}`.
impl Path for (Id, String) {
    fn read(values: &[&str]) -> Result<(Id, String), Problem> {
        let (first, second) = match values {
            [first, second] => (*first, *second),
            _ => ("", ""),
        };
        Ok((id(first)?, text(second)?))
    }

    fn describe(names: &[&str]) -> Vec<Parameter> {
        let mut parameters = Id::describe(&names[..1]);
        parameters.extend(String::describe(&names[1..]));
        parameters
    }
}

impl Path for String {
    fn read(values: &[&str]) -> Result<String, Problem> {
        text(values.first().copied().unwrap_or_default())
    }

    fn describe(names: &[&str]) -> Vec<Parameter> {
        let schema = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .min_length(Some(1))
            .max_length(Some(limits::PATH_VALUE_BYTES_MAX));
        let schema: RefOr<Schema> = schema.into();
        names.iter().map(|name| path_parameter(name, "A name.", schema.clone())).collect()
    }
}

fn path_parameter(name: &str, what: &str, schema: RefOr<Schema>) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(what))
        .schema(Some(schema))
        .build()
}

fn id(value: &str) -> Result<Id, Problem> {
    value.parse().map_err(|error| Problem::bad_request(format!("in the path: {error}")))
}

fn text(value: &str) -> Result<String, Problem> {
    if value.is_empty() || value.len() > limits::PATH_VALUE_BYTES_MAX {
        let max = limits::PATH_VALUE_BYTES_MAX;
        return Err(Problem::bad_request(format!(
            "a value in the path must have 1 to {max} bytes"
        )));
    }
    if value.chars().any(char::is_control) {
        return Err(Problem::bad_request("a value in the path has a control character"));
    }
    Ok(value.to_owned())
}

/// How ids look.
pub(crate) fn id_schema() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .pattern(Some("^[0-9a-f]{32}$"))
        .build()
        .into()
}

/// A query.
pub trait Asked: Sized + Send {
    /// Reads it.
    ///
    /// # Errors
    /// 400: what is wrong.
    fn read(uri: &axum::http::Uri) -> Result<Self, Problem>;
    /// Describes it.
    fn describe() -> Vec<Parameter>;
}

impl Asked for () {
    fn read(_uri: &axum::http::Uri) -> Result<(), Problem> {
        Ok(())
    }

    fn describe() -> Vec<Parameter> {
        Vec::new()
    }
}

/// A query with these fields.
pub struct Fields<T>(pub T);

impl<T: DeserializeOwned + IntoParams + Send> Asked for Fields<T> {
    fn read(uri: &axum::http::Uri) -> Result<Fields<T>, Problem> {
        let read = Query::<T>::try_from_uri(uri);
        let read = read.map_err(|error| Problem::bad_request(error.body_text()))?;
        Ok(Fields(read.0))
    }

    fn describe() -> Vec<Parameter> {
        T::into_params(|| Some(ParameterIn::Query))
    }
}

/// A body.
pub trait Content: Sized + Send {
    /// Reads it.
    ///
    /// # Errors
    /// 400, 408, 413, 415 or 422: what is wrong.
    fn read(request: Request) -> impl Future<Output = Result<Self, Problem>> + Send;
    /// Describes it; named schemas that it refers to go into `schemas`.
    fn describe(schemas: &mut Schemas) -> Option<RequestBody>;
}

impl Content for () {
    async fn read(_request: Request) -> Result<(), Problem> {
        Ok(())
    }

    fn describe(_schemas: &mut Schemas) -> Option<RequestBody> {
        None
    }
}

/// A type that comes as a body: what serde cannot tell is checked here.
pub trait Checked {
    /// Bytes that it may have.
    const BYTES_MAX: usize = limits::BODY_BYTES_MAX;

    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    fn check(&self) -> Result<(), Invalid>;
}

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + ToSchema + Checked + Send> Content for Json<T> {
    async fn read(request: Request) -> Result<Json<T>, Problem> {
        let bytes = json_bytes(request, T::BYTES_MAX).await?;
        let value: T = serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
        value.check().map_err(refused)?;
        Ok(Json(value))
    }

    fn describe(schemas: &mut Schemas) -> Option<RequestBody> {
        Some(json_body(reference::<T>(schemas)))
    }
}

/// The text of a JSON body.
pub(crate) async fn json_bytes(request: Request, max: usize) -> Result<Bytes, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let status = axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let detail = "the body is not announced as JSON";
        let next = "send it with Content-Type: application/json";
        return Err(Problem::new(status, crate::problem::Fault::Usage, detail, next));
    }
    body_bytes(request, max).await
}

async fn body_bytes(request: Request, max: usize) -> Result<Bytes, Problem> {
    let fail = |status, detail: String| {
        let next = "send a smaller body, faster";
        Err(Problem::new(status, crate::problem::Fault::Usage, detail, next))
    };
    let within = Duration::from_secs(limits::BODY_SECONDS_MAX);
    let body = Limited::new(request.into_body(), max).collect();
    match tokio::time::timeout(within, body).await {
        Err(_) => {
            let seconds = limits::BODY_SECONDS_MAX;
            let status = axum::http::StatusCode::REQUEST_TIMEOUT;
            fail(status, format!("the body did not come within {seconds} s"))
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let status = axum::http::StatusCode::PAYLOAD_TOO_LARGE;
            fail(status, format!("the body is larger than {max} bytes"))
        }
        Ok(Err(_)) => Err(Problem::bad_request("the body could not be read to its end")),
        Ok(Ok(body)) => Ok(body.to_bytes()),
    }
}

/// JSON that is no such thing. serde quotes what it found, which may be a secret: only where and
/// what kind of fault is told, unless it is a field's name.
pub(crate) fn unreadable(error: &serde_json::Error) -> Problem {
    use serde_json::error::Category;
    let place = format!("line {}, column {}", error.line(), error.column());
    match error.classify() {
        Category::Data => Problem::invalid(format!("the body does not fit: {}", cautious(error))),
        Category::Eof => Problem::bad_request("the body's JSON ends too early"),
        Category::Syntax | Category::Io => {
            Problem::bad_request(format!("the body is no JSON at {place}"))
        }
    }
}

/// What serde says, without the values that it quotes.
fn cautious(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let names = ["missing field", "unknown field", "duplicate field", "unknown variant"];
    if names.iter().any(|name| text.starts_with(name)) {
        return text.chars().take(300).collect();
    }
    // `invalid type: string "...", expected a number`: the second half holds no value.
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => {
            format!("expected {}", expected.chars().take(300).collect::<String>())
        }
        None => "a value is of no kind that is expected there".to_owned(),
    }
}

/// A record's own finding.
pub(crate) fn refused(invalid: Invalid) -> Problem {
    Problem::invalid(invalid.to_string())
}

pub(crate) fn json_body(schema: RefOr<Schema>) -> RequestBody {
    RequestBodyBuilder::new()
        .content("application/json", ContentBuilder::new().schema(Some(schema)).build())
        .required(Some(Required::True))
        .build()
}

/// A reference to a type's schema, which is put among the named ones with all that it refers to.
pub(crate) fn reference<T: ToSchema>(schemas: &mut Schemas) -> RefOr<Schema> {
    let name = T::name().into_owned();
    schemas.push((name.clone(), T::schema()));
    T::schemas(schemas);
    Ref::from_schema_name(name).into()
}
