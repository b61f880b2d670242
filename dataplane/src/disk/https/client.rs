//! One resource of a host: requests with credentials, answers that were checked.
//!
//! In: where, whom to trust, credentials. Out: responses of the status that was hoped for.
//! Invariant: expired credentials are replaced before a request counts as failed; an error's body is
//! read within a bound only.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use gantry_common::source::{HttpAuth, ServerTrust};
use gantry_http::header::{AUTHORIZATION, COOKIE};
use gantry_http::{Endpoint, HttpClient, Limits, Request, Response, StatusCode, Trust};
use std::time::Duration;

use super::error::HttpsError;
use crate::disk::credentials::CredentialSource;

/// Bytes of an error's body that are read for its words.
const WORDS_BYTES_MAX: usize = 16 << 10;
/// Times that one request gets fresh credentials.
const RENEWALS_MAX: u32 = 3;

/// A resource and what opens it.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    client: HttpClient,
    path_and_query: String,
    pub credentials: CredentialSource,
}

impl Resource {
    /// Nothing is connected yet. After `stall` without a byte an answer counts as lost.
    pub(crate) fn new(
        (host, port): (&str, u16),
        trust: &ServerTrust,
        path_and_query: &str,
        connections: u16,
        stall: Duration,
        credentials: CredentialSource,
    ) -> Result<Resource, HttpsError> {
        let wrong = |what: String| HttpsError::Configuration(what);
        let endpoint = Endpoint::new(host, port).map_err(|error| wrong(error.to_string()))?;
        let trust = match trust {
            ServerTrust::Thumbprint(text) => {
                let thumbprint = text.parse();
                Trust::Sha256Thumbprint(thumbprint.map_err(|_| {
                    wrong(format!("'{text}' is no SHA-256 thumbprint (64 hexadecimal digits)"))
                })?)
            }
            ServerTrust::CaPem(pem) => Trust::CaPem(pem.clone().into_bytes()),
        };
        let bounds = Limits {
            connections_max: usize::from(connections),
            request_timeout: stall,
            chunk_timeout: stall,
            ..Limits::default()
        };
        let client = HttpClient::new(endpoint, &trust, bounds)?;
        Ok(Resource { client, path_and_query: path_and_query.to_owned(), credentials })
    }

    /// Asks for some bytes, or for all.
    ///
    /// # Errors
    /// Anything but an answer of 200 or 206.
    pub(crate) async fn get(&self, range: Option<(u64, u64)>) -> Result<Response, HttpsError> {
        let mut renewals = 0;
        let mut present = self.credentials.present();
        loop {
            let mut request = with_auth(Request::get(&self.path_and_query), &present.auth);
            if let Some((start, len)) = range {
                request = request.range(start, len);
            }
            let response = self.client.send(&request).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                    response.discard(WORDS_BYTES_MAX).await;
                    renewals += 1;
                    let fresh = match renewals > RENEWALS_MAX {
                        true => None,
                        false => self.credentials.fresh(present.number).await,
                    };
                    present = fresh.ok_or(HttpsError::Credentials(status))?;
                }
                status => {
                    let body = response.body_bounded(WORDS_BYTES_MAX).await.unwrap_or_default();
                    return Err(HttpsError::Status { status, words: words(&body) });
                }
            }
        }
    }
}

fn with_auth(request: Request, auth: &HttpAuth) -> Request {
    match auth {
        // A file's content has taken the file's place.
        HttpAuth::None | HttpAuth::File(_) => request,
        HttpAuth::Cookie(cookie) => request.header(COOKIE, cookie.reveal()),
        HttpAuth::Ticket(ticket) => {
            request.header(COOKIE, format!("vmware_cgi_ticket={}", ticket.reveal()))
        }
        HttpAuth::Basic { user, password } => {
            let pair = BASE64.encode(format!("{user}:{}", password.reveal()));
            request.header(AUTHORIZATION, format!("Basic {pair}"))
        }
    }
}

/// An error page's text, without its markup, for a person.
fn words(body: &[u8]) -> String {
    let mut inside = false;
    let text: String = String::from_utf8_lossy(body)
        .chars()
        .filter(|c| {
            let shown = !inside && *c != '<';
            inside = *c == '<' || (inside && *c != '>');
            shown
        })
        .collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace(char::is_control, "").chars().take(200).collect()
}
