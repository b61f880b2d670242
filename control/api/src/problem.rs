//! What went wrong with a request, told as RFC 9457 problem details with what to do next.
//!
//! In: a backend's failure, or a request that is not as it must be. Out: `application/problem+json`.
//! Invariant: no problem holds a secret: bodies of requests are never quoted.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gantry_common::failure::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Media type of a problem.
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// Whose failure it is, as in exit codes of the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request is wrong.
    Usage,
    /// The source, or a restore's destination.
    Source,
    /// Something cannot be reached; trying again may help.
    Network,
    /// Not allowed.
    Refused,
    /// The repository.
    Target,
    /// A bug of Gantry.
    Internal,
}

impl From<FailureKind> for Fault {
    fn from(kind: FailureKind) -> Fault {
        match kind {
            FailureKind::Usage => Fault::Usage,
            FailureKind::Source => Fault::Source,
            FailureKind::Network => Fault::Network,
            FailureKind::Refused => Fault::Refused,
            FailureKind::Target => Fault::Target,
            FailureKind::Internal => Fault::Internal,
        }
    }
}

impl From<Fault> for FailureKind {
    fn from(fault: Fault) -> FailureKind {
        match fault {
            Fault::Usage => FailureKind::Usage,
            Fault::Source => FailureKind::Source,
            Fault::Network => FailureKind::Network,
            Fault::Refused => FailureKind::Refused,
            Fault::Target => FailureKind::Target,
            Fault::Internal => FailureKind::Internal,
        }
    }
}

/// A request that failed (RFC 9457). It bears no `type`, which means `about:blank`: the status tells
/// what kind of problem it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong, naming the thing.
    pub detail: String,
    /// What to do next.
    pub next: String,
    /// Whose failure it is.
    pub fault: Fault,
    /// The request, as it stands in gantryd's log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// Seconds to wait before trying again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl Problem {
    /// A problem with this status, text and advice.
    pub fn new(
        status: StatusCode,
        fault: Fault,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) -> Problem {
        Problem {
            title: status.canonical_reason().unwrap_or("Failed").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            next: next.into(),
            fault,
            request_id: String::new(),
            retry_after_seconds: None,
        }
    }

    /// The request cannot be read (400).
    pub fn bad_request(detail: impl Into<String>) -> Problem {
        let next = "correct the request; /api/v1/openapi.json describes it";
        Problem::new(StatusCode::BAD_REQUEST, Fault::Usage, detail, next)
    }

    /// The request can be read, but a value in it cannot be used (422).
    pub fn invalid(detail: impl Into<String>) -> Problem {
        let next = "correct the value and send the request again";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Fault::Usage, detail, next)
    }

    /// There is no such thing (404).
    pub fn not_found(what: &str, id: impl std::fmt::Display) -> Problem {
        let next = format!("list what there is: gantry {what} list");
        let detail = format!("there is no {what} '{id}'");
        Problem::new(StatusCode::NOT_FOUND, Fault::Usage, detail, next)
    }

    /// It contradicts what is there (409).
    pub fn conflict(detail: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, Fault::Usage, detail, next)
    }

    /// Not with these credentials (403).
    pub fn forbidden(detail: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, Fault::Refused, detail, next)
    }

    /// It cannot be done now (503).
    pub fn unavailable(detail: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, Fault::Network, detail, next)
    }

    /// A bug (500).
    pub fn internal(detail: impl Into<String>) -> Problem {
        let next = "look into gantryd's log for this request, and report it";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, Fault::Internal, detail, next)
    }

    /// No usable token (401).
    pub(crate) fn unauthorized(detail: &str) -> Problem {
        let next = "send 'Authorization: Bearer TOKEN'; an administrator makes tokens with \
                    gantry token create";
        Problem::new(StatusCode::UNAUTHORIZED, Fault::Refused, detail, next)
    }

    /// Too often (429).
    pub(crate) fn too_many(detail: impl Into<String>, seconds: u64) -> Problem {
        let next = format!("wait {seconds} s");
        let status = StatusCode::TOO_MANY_REQUESTS;
        let problem = Problem::new(status, Fault::Refused, detail, next);
        Problem { retry_after_seconds: Some(seconds), ..problem }
    }

    /// With other advice.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Problem {
        self.next = next.into();
        self
    }

    /// The status.
    pub fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        let (status, next) = match failure.kind {
            FailureKind::Usage => (StatusCode::UNPROCESSABLE_ENTITY, "correct it and try again"),
            FailureKind::Source | FailureKind::Target => {
                (StatusCode::BAD_GATEWAY, "put it right there and try again")
            }
            FailureKind::Network => (StatusCode::SERVICE_UNAVAILABLE, "try again"),
            FailureKind::Refused => (
                StatusCode::BAD_GATEWAY,
                "check the certificate, credential or version of the other side",
            ),
            FailureKind::Internal => return Problem::internal(failure.message),
        };
        Problem::new(status, failure.kind.into(), failure.message, next)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status_code(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use gantry_common::failure::{Failure, FailureKind};

    use super::Problem;

    #[test]
    fn a_failure_keeps_its_kind_and_says_what_to_do() {
        for kind in [
            FailureKind::Usage,
            FailureKind::Source,
            FailureKind::Network,
            FailureKind::Refused,
            FailureKind::Target,
            FailureKind::Internal,
        ] {
            let problem = Problem::from(Failure::new(kind, "disk 1 of web01"));
            assert_eq!(FailureKind::from(problem.fault), kind);
            assert!(!problem.next.is_empty() && problem.status >= 400);
            let text = serde_json::to_string(&problem).unwrap();
            assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
        }
    }
}
