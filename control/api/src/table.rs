//! The one table of routes: where each is, who may use it, what it takes and gives.
//!
//! In: handlers. Out: axum's router and the OpenAPI document, both from the same rows. Invariant: a
//! route cannot be added without saying who may use it.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::{Operation, OperationBuilder, Parameter};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, ResponsesBuilder};

use crate::access::Access;
use crate::answer::Answer;
use crate::api::{Api, peer};
use crate::call::{Asked, Call, Content, Path, Schemas};
use crate::problem::{PROBLEM_TYPE, Problem};

/// Name of the security scheme in the document.
pub(crate) const SCHEME: &str = "token";

/// Field of an operation that names the lowest role that may use it.
const ROLE: &str = "x-gantry-role";

/// A route.
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, with names in braces.
    pub path: String,
    /// Who may use it.
    pub access: Access,
    pub(crate) operation: Operation,
    pub(crate) schemas: Schemas,
    handler: MethodRouter<Api>,
}

/// What a route is, beside its handler.
pub struct Head<'a> {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: &'a str,
    /// Who may use it.
    pub access: Access,
    /// Its name in the document: `job_start`.
    pub name: &'a str,
    /// One sentence for a person.
    pub summary: &'a str,
}

/// Puts a route together.
pub fn route<P, Q, B, A, F, Fut>(head: Head<'_>, handler: F) -> Route
where
    P: Path + 'static,
    Q: Asked + 'static,
    B: Content + 'static,
    A: Answer + 'static,
    F: Fn(Call<P, Q, B>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<A, Problem>> + Send + 'static,
{
    let mut schemas = Schemas::new();
    let operation = describe::<P, Q, B, A>(&head, &mut schemas);
    let filter = MethodFilter::try_from(head.method.clone()).expect("a method that routes have");
    let access = head.access;
    let serve = move |State(api): State<Api>, request: Request| {
        let handler = handler.clone();
        async move { answer(api, access, request, handler).await }
    };
    Route {
        method: head.method,
        path: head.path.to_owned(),
        access,
        operation,
        schemas,
        handler: on(filter, serve),
    }
}

async fn answer<P, Q, B, A, F, Fut>(
    api: Api,
    access: Access,
    request: Request,
    handler: F,
) -> Response
where
    P: Path,
    Q: Asked,
    B: Content,
    A: Answer,
    F: Fn(Call<P, Q, B>) -> Fut,
    Fut: Future<Output = Result<A, Problem>>,
{
    let exchange = async {
        let token = request.headers().get(header::AUTHORIZATION).cloned();
        let who = api.admit(access, token.as_ref(), peer(&request)).await?;
        let name = who.name.clone();
        let call = Call::read(api, who, request).await?;
        let mut response = match handler(call).await {
            Ok(answer) => answer.respond(),
            Err(problem) => problem.into_response(),
        };
        response.extensions_mut().insert(Asker(name));
        Ok(response)
    };
    exchange.await.unwrap_or_else(|problem: Problem| problem.into_response())
}

/// Name of the token that was used: for the log.
#[derive(Debug, Clone)]
pub(crate) struct Asker(pub(crate) String);

fn describe<P: Path, Q: Asked, B: Content, A: Answer>(
    head: &Head<'_>,
    schemas: &mut Schemas,
) -> Operation {
    let names: Vec<&str> =
        head.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
    let mut parameters = if names.is_empty() { Vec::new() } else { P::describe(&names) };
    parameters.extend(Q::describe());
    let answer = A::describe(schemas);
    let tag = head.name.split('_').next().unwrap_or(head.name);
    let mut operation = OperationBuilder::new()
        .operation_id(Some(head.name))
        .summary(Some(head.summary))
        .tag(tag)
        .request_body(B::describe(schemas))
        .responses(
            ResponsesBuilder::new()
                .response(A::STATUS.as_str(), answer)
                .response("default", problem())
                .build(),
        );
    for parameter in parameters {
        operation = operation.parameter(parameter);
    }
    if let Access::Role(role) = head.access {
        let role = serde_json::to_value(role).unwrap_or_default();
        let role = role.as_str().unwrap_or_default();
        let needs = format!("Needs a token of role {role} or above.");
        operation = operation
            .description(Some(needs))
            .extensions(Some(Extensions::builder().add(ROLE, role).build()))
            .security(SecurityRequirement::new(SCHEME, Vec::<String>::new()));
    }
    operation.build()
}

fn problem() -> utoipa::openapi::Response {
    let schema = Ref::from_schema_name("Problem");
    ResponseBuilder::new()
        .description("What went wrong, and what to do next.")
        .content(PROBLEM_TYPE, ContentBuilder::new().schema(Some(schema)).build())
        .build()
}

impl Route {
    /// Its answer needs a vCenter or a mover: one that fails or cannot be reached is no fault of
    /// gantryd's, and is told as 502 or 503. No other route answers so while gantryd is well.
    #[must_use]
    pub(crate) fn asks_elsewhere(mut self) -> Route {
        for status in [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE] {
            let answers = &mut self.operation.responses.responses;
            answers.insert(status.as_str().to_owned(), RefOr::T(problem()));
        }
        self
    }

    /// With another parameter, such as a header.
    #[must_use]
    pub(crate) fn parameter(mut self, parameter: Parameter) -> Route {
        self.operation.parameters.get_or_insert_default().push(RefOr::T(parameter));
        self
    }
}

/// axum's router of these routes.
pub(crate) fn router(routes: Vec<Route>) -> Router<Api> {
    let mut router = Router::new();
    for route in routes {
        router = router.route(&route.path, route.handler);
    }
    router
        .fallback(async || {
            let detail = "there is nothing at this path";
            let next = "see /api/v1/openapi.json for the paths that there are";
            Problem::new(StatusCode::NOT_FOUND, crate::problem::Fault::Usage, detail, next)
        })
        .method_not_allowed_fallback(async || {
            let detail = "this path does not take this method";
            let next = "see the Allow header, or /api/v1/openapi.json";
            let status = StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(status, crate::problem::Fault::Usage, detail, next)
        })
}
