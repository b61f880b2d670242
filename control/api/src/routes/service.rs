//! The service itself: whether it lives, its document, metrics, tokens, settings, export.

use axum::http::Method;

use crate::access::{Access, token_digest, token_text};
use crate::answer::{Done, Listed, Made, Ready, Shown, Text};
use crate::api::now_ms;
use crate::call::{Call, Json, refused};
use crate::metrics;
use crate::model::{Id, Setting};
use crate::problem::Problem;
use crate::table::{Head, Route, route};
use crate::views::{About, Document, SettingValue, Token, TokenMade, TokenRequest};

#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    let head = |method, path, access, name, summary| Head { method, path, access, name, summary };
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    vec![
        route(head(get.clone(), "/healthz", Access::Public, "service_health", "Whether gantryd answers."), health),
        route(head(get.clone(), "/metrics", Access::VIEWER, "service_metrics", "Numbers for Prometheus."), numbers),
        route(head(get.clone(), "/api/v1/openapi.json", Access::VIEWER, "service_document", "This document."), document),
        route(head(get.clone(), "/api/v1/about", Access::VIEWER, "service_about", "gantryd's version, and who asks."), about),
        route(head(get.clone(), "/api/v1/tokens", Access::ADMIN, "token_list", "Tokens, without their texts."), tokens),
        route(head(post, "/api/v1/tokens", Access::ADMIN, "token_create", "Makes one; its text is shown this once."), create_token),
        route(head(delete, "/api/v1/tokens/{id}", Access::ADMIN, "token_delete", "Deletes one."), delete_token),
        route(head(get.clone(), "/api/v1/settings", Access::VIEWER, "setting_list", "Settings of the service."), settings),
        route(head(put, "/api/v1/settings/{name}", Access::ADMIN, "setting_set", "Sets one."), set),
        route(head(get, "/api/v1/export", Access::ADMIN, "config_export", "The whole configuration, without secrets."), export),
    ]
}

async fn health(_call: Call) -> Result<Text, Problem> {
    Ok(Text { kind: "text/plain; charset=utf-8", text: "ok\n".to_owned() })
}

async fn numbers(call: Call) -> Result<Text, Problem> {
    let numbers = call.api.backend().numbers().await?;
    let text = metrics::page(&numbers, call.api.answers());
    Ok(Text { kind: metrics::METRICS_TYPE, text })
}

async fn document(call: Call) -> Result<Ready, Problem> {
    Ok(Ready(call.api.document()))
}

async fn about(call: Call) -> Result<Shown<About>, Problem> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Shown(About { version, token: call.who.name, role: call.who.role }))
}

async fn tokens(call: Call) -> Result<Listed<Token>, Problem> {
    call.api.backend().tokens().await.map(Listed::all)
}

async fn create_token(call: Call<(), (), Json<TokenRequest>>) -> Result<Made<TokenMade>, Problem> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(|error| Problem::internal(format!("no random bytes: {error}")))?;
    let text = token_text(random);
    let digest = token_digest(text.reveal());
    let token = call.api.backend().create_token(call.body.0, digest, now_ms()).await?;
    Ok(Made(TokenMade { token, text: text.reveal().to_owned() }))
}

async fn delete_token(call: Call<Id>) -> Result<Done, Problem> {
    call.api.backend().delete_token(call.path).await.map(|()| Done)
}

async fn settings(call: Call) -> Result<Listed<Setting>, Problem> {
    call.api.backend().settings().await.map(Listed::all)
}

async fn set(call: Call<String, (), Json<SettingValue>>) -> Result<Shown<Setting>, Problem> {
    let setting = Setting { name: call.path, value: call.body.0.value };
    setting.validate().map_err(refused)?;
    call.api.backend().set_setting(setting).await.map(Shown)
}

async fn export(call: Call) -> Result<Shown<Document>, Problem> {
    call.api.backend().export().await.map(|document| Shown(Document(document)))
}
