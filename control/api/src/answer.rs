//! What a handler gives back: each kind knows its status, its headers and its description.
//!
//! In: values. Out: responses. Invariant: the status that is described is the one that is sent.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, RefOr, ResponseBuilder, Schema};

use crate::call::{Schemas, reference};
use crate::problem::Problem;

/// A successful answer.
pub trait Answer: Send {
    /// Its status.
    const STATUS: StatusCode;
    /// Its response.
    fn respond(self) -> Response;
    /// Describes it; named schemas that it refers to go into `schemas`.
    fn describe(schemas: &mut Schemas) -> utoipa::openapi::Response;
}

/// A value (200).
pub struct Shown<T>(pub T);

/// Something that was made (201).
pub struct Made<T>(pub T);

/// Something that was begun and is looked at later (202).
pub struct Begun<T>(pub T);

/// Values (200).
pub struct Listed<T> {
    /// A page of them.
    pub items: Vec<T>,
    /// What to ask for as `after` to see the next page; nothing: this is the last.
    pub next: Option<String>,
}

/// Done, nothing to say (204).
pub struct Done;

/// Text (200).
pub struct Text {
    /// Its media type: `text/plain` and its parameters.
    pub kind: &'static str,
    /// The text.
    pub text: String,
}

/// JSON that is there already (200).
pub struct Ready(pub bytes::Bytes);

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            (status, [kind], body).into_response()
        }
        Err(error) => Problem::internal(format!("writing JSON: {error}")).into_response(),
    }
}

fn described(what: &str, schema: RefOr<Schema>) -> utoipa::openapi::Response {
    ResponseBuilder::new()
        .description(what)
        .content("application/json", ContentBuilder::new().schema(Some(schema)).build())
        .build()
}

macro_rules! one_value {
    ($name:ident, $status:expr, $what:literal) => {
        impl<T: Serialize + ToSchema + Send> Answer for $name<T> {
            const STATUS: StatusCode = $status;

            fn respond(self) -> Response {
                json(Self::STATUS, &self.0)
            }

            fn describe(schemas: &mut Schemas) -> utoipa::openapi::Response {
                described($what, reference::<T>(schemas))
            }
        }
    };
}

one_value!(Shown, StatusCode::OK, "What was asked for.");
one_value!(Made, StatusCode::CREATED, "It was made.");
one_value!(Begun, StatusCode::ACCEPTED, "It was begun.");

impl<T> Listed<T> {
    /// All of them.
    pub fn all(items: Vec<T>) -> Listed<T> {
        Listed { items, next: None }
    }
}

impl<T: Serialize + ToSchema + Send> Answer for Listed<T> {
    const STATUS: StatusCode = StatusCode::OK;

    fn respond(self) -> Response {
        json(Self::STATUS, &serde_json::json!({"items": self.items, "next": self.next}))
    }

    fn describe(schemas: &mut Schemas) -> utoipa::openapi::Response {
        let items = ArrayBuilder::new().items(reference::<T>(schemas)).build();
        let text_or_nothing = SchemaType::from_iter([Type::String, Type::Null]);
        let page = ObjectBuilder::new()
            .property("items", items)
            .required("items")
            .property("next", ObjectBuilder::new().schema_type(text_or_nothing).build())
            .required("next")
            .build();
        described("A page of them.", page.into())
    }
}

impl Answer for Done {
    const STATUS: StatusCode = StatusCode::NO_CONTENT;

    fn respond(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }

    fn describe(_schemas: &mut Schemas) -> utoipa::openapi::Response {
        ResponseBuilder::new().description("Done.").build()
    }
}

impl Answer for Text {
    const STATUS: StatusCode = StatusCode::OK;

    fn respond(self) -> Response {
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        ([kind], self.text).into_response()
    }

    fn describe(_schemas: &mut Schemas) -> utoipa::openapi::Response {
        let text = ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).build();
        ResponseBuilder::new()
            .description("Text.")
            .content("text/plain", ContentBuilder::new().schema(Some(text)).build())
            .build()
    }
}

impl Answer for Ready {
    const STATUS: StatusCode = StatusCode::OK;

    fn respond(self) -> Response {
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        ([kind], self.0).into_response()
    }

    fn describe(_schemas: &mut Schemas) -> utoipa::openapi::Response {
        let object = ObjectBuilder::new().schema_type(SchemaType::new(Type::Object)).build();
        described("A JSON document.", object.into())
    }
}

/// A response that a handler made itself: a live stream.
pub struct Streamed(pub Response);

impl Answer for Streamed {
    const STATUS: StatusCode = StatusCode::OK;

    fn respond(self) -> Response {
        self.0
    }

    fn describe(_schemas: &mut Schemas) -> utoipa::openapi::Response {
        let text = ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).build();
        let content = ContentBuilder::new().schema(Some(text)).build();
        ResponseBuilder::new()
            .description("Server-sent events: event (id, EventRecord), progress (Progress), end.")
            .content("text/event-stream", content)
            .build()
    }
}
