//! Every route, and the OpenAPI document of them all.
//!
//! In: nothing. Out: rows of the [`crate::table`]. A file for each group; records of all kinds share
//! [`records`].

use axum::http::Method;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder,
};
use utoipa::{PartialSchema as _, ToSchema as _};

use crate::call::Schemas;
use crate::model::Role;
use crate::problem::Problem;
use crate::table::{Route, SCHEME};

mod records;
mod infrastructure;
mod jobs;
mod sessions;
mod points;
mod service;

/// Every route that there is.
pub fn all() -> Vec<Route> {
    let groups = [
        service::routes(),
        records::routes(),
        infrastructure::routes(),
        jobs::routes(),
        sessions::routes(),
        points::routes(),
    ];
    groups.into_iter().flatten().collect()
}

/// A role as a person writes it.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// The OpenAPI document.
pub fn document() -> OpenApi {
    let mut schemas: Schemas = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut schemas);
    let mut paths = PathsBuilder::new();
    for route in all() {
        schemas.extend(route.schemas);
        let method = http_method(&route.method);
        paths = paths.path(route.path, PathItem::new(method, route.operation));
    }
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme(SCHEME, SecurityScheme::Http(token))
        .build();
    let info = InfoBuilder::new()
        .title("Gantry")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Backups of vSphere virtual machines: jobs, sessions, points."))
        .build();
    OpenApiBuilder::new().info(info).paths(paths.build()).components(Some(components)).build()
}

fn http_method(method: &Method) -> HttpMethod {
    match method.as_str() {
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "DELETE" => HttpMethod::Delete,
        "PATCH" => HttpMethod::Patch,
        _ => HttpMethod::Get,
    }
}
