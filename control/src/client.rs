//! A client of gantryd's REST API.
//!
//! In: a [`Login`] (address, authority, token). Out: JSON, or a failure with what the server says to do
//! next. Invariants: nobody but the named authority is talked to; the token is in no error and no log;
//! answers are bounded.

use std::path::Path;
use std::time::Duration;

use gantry_api::Problem;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::secret::Secret;
use gantry_http::header::HeaderName;
use gantry_http::{HttpClient, HttpError, Limits, Method, Request, Response, Trust};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::run::failed;
use crate::{config, durable_file};

/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of a log-in's file.
const LOGIN_BYTES_MAX: u64 = 1 << 20;
/// Bytes of one line of a live stream.
const LINE_BYTES_MAX: usize = 1 << 20;

/// How a gantryd is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// `https://HOST:PORT`.
    pub url: String,
    /// The certificate authority's certificate (PEM) that gantryd's must be signed by.
    pub ca: String,
    /// The token.
    pub token: Secret,
}

impl Login {
    /// Reads a file that [`Login::save`] has written.
    ///
    /// # Errors
    /// `Usage`: there is none, or others can read it.
    pub fn load(path: &Path) -> Result<Login, Failure> {
        use std::os::unix::fs::PermissionsExt;
        let refuse =
            |text: String| failed(FailureKind::Usage, format!("{}: {text}", path.display()));
        let facts = std::fs::metadata(path)
            .map_err(|error| refuse(format!("{error}; log in first: gantry login")))?;
        if facts.permissions().mode() & 0o077 != 0 {
            return Err(refuse("others can read it: chmod 600 it, and make a new token".into()));
        }
        if facts.len() > LOGIN_BYTES_MAX {
            return Err(refuse("it is no log-in".into()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        // The parser's message would quote the line, and with it the token.
        serde_json::from_str(&text)
            .map_err(|_| refuse("it is no log-in: log in again: gantry login".into()))
    }

    /// Writes it for nobody else to read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let fail = |error: std::io::Error| {
            failed(FailureKind::Usage, format!("{}: {error}", path.display()))
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(fail)?;
        }
        let kept =
            serde_json::to_vec(self).map_err(|error| failed(FailureKind::Internal, error))?;
        durable_file::replace(path, &kept).map_err(fail)
    }
}

/// The client.
pub struct Client {
    http: HttpClient,
    token: Secret,
}

impl Client {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// `Usage`: address or certificate are none.
    pub fn new(login: &Login) -> Result<Client, Failure> {
        let endpoint = config::endpoint(&login.url)?;
        let trust = Trust::CaPem(login.ca.clone().into_bytes());
        let http = HttpClient::new(endpoint, &trust, Limits::default()).map_err(unreached)?;
        Ok(Client { http, token: login.token.clone() })
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Request {
        let bearer = format!("Bearer {}", self.token.reveal());
        let path = format!("/api/v1/{path}");
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = match method {
            Method::POST => Request::post(path, body),
            Method::PUT => Request::put(path, body),
            other => Request::new(other, path),
        };
        request
            .header(HeaderName::from_static("authorization"), bearer)
            .header(HeaderName::from_static("content-type"), "application/json")
    }

    async fn send(&self, request: &Request) -> Result<Response, Failure> {
        let response = self.http.send(request).await.map_err(unreached)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.body_bounded(ANSWER_BYTES_MAX).await.map_err(unreached)?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => {
                failed(problem.fault.into(), format!("{}; {}", problem.detail, problem.next))
            }
            Err(_) => failed(FailureKind::Network, format!("the server answers {status}")),
        })
    }

    /// Asks, and gives the answer; null if there is none.
    ///
    /// # Errors
    /// What the server refuses with, or why it is not reached.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let response = self.send(&self.request(method, path, body)).await?;
        let body = response.body_bounded(ANSWER_BYTES_MAX).await.map_err(unreached)?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|error| {
            failed(FailureKind::Network, format!("the server's answer is no JSON: {error}"))
        })
    }

    /// `GET`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// `POST`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Follows a session's live stream; `take` gets each event's name and data until it is over. A
    /// connection that is lost is made anew, from where it was.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn follow(
        &self,
        session: &str,
        mut take: impl FnMut(&str, &Value),
    ) -> Result<(), Failure> {
        let mut last = 0;
        let mut failures = 0;
        loop {
            let before = last;
            let request = self.request(Method::GET, &format!("sessions/{session}/stream"), None);
            let number = HeaderName::from_static("last-event-id");
            let request = request.header(number, format!("{last}"));
            let followed = async {
                let mut response = self.send(&request).await?;
                self.lines(&mut response, &mut last, &mut take).await
            };
            match followed.await {
                Ok(true) => return Ok(()),
                Ok(false) if last > before => failures = 0,
                Ok(false) if failures >= 20 => {
                    let text = "the server ends the session's stream again and again";
                    return Err(failed(FailureKind::Network, text));
                }
                Ok(false) => failures += 1,
                Err(failure) if failure.kind != FailureKind::Network => return Err(failure),
                Err(failure) if failures >= 20 => return Err(failure),
                Err(_) => failures += 1,
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Whether the session is over; false: the stream has ended before.
    async fn lines(
        &self,
        response: &mut Response,
        last: &mut u64,
        take: &mut impl FnMut(&str, &Value),
    ) -> Result<bool, Failure> {
        let (mut rest, mut event) = (Vec::new(), String::new());
        while let Some(chunk) = response.next_chunk().await.map_err(unreached)? {
            rest.extend_from_slice(&chunk);
            while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=at).collect();
                let line = String::from_utf8_lossy(&line);
                match line.trim_end().split_once(':') {
                    Some(("id", number)) => *last = number.trim().parse().unwrap_or(*last),
                    Some(("event", name)) => event = name.trim().to_owned(),
                    Some(("data", data)) => {
                        let data = serde_json::from_str(data.trim()).unwrap_or(Value::Null);
                        take(&event, &data);
                        if event == "end" {
                            return Ok(true);
                        }
                    }
                    _ => {}
                }
            }
            if rest.len() > LINE_BYTES_MAX {
                return Err(failed(
                    FailureKind::Network,
                    "the server's stream has an endless line",
                ));
            }
        }
        Ok(false)
    }
}

/// Why nothing was answered. A server that is not trusted is refused for good: whoever follows a stream
/// does not try it again.
fn unreached(error: HttpError) -> Failure {
    match error {
        HttpError::UntrustedCertificate { .. } | HttpError::Tls { .. } => {
            let next = "gantryd's certificate is signed by the authority in STATE/ca.pem on its host, \
                        unless [api] names another: fetch that file, and log in with it (gantry \
                        login --ca)";
            failed(FailureKind::Refused, format!("{error}; {next}"))
        }
        error => failed(FailureKind::Network, format!("{error}; is gantryd running there?")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_kept_for_nobody_else_and_never_shown() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/client.json");
        let login = Login {
            url: "https://127.0.0.1:1".into(),
            ca: "-----BEGIN\n\"x\"\n".into(),
            token: Secret::new("gantry_hush"),
        };
        login.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Login::load(&path).unwrap();
        assert_eq!((&read.url, &read.ca), (&login.url, &login.ca));
        assert_eq!(read.token.reveal(), "gantry_hush");
        assert!(!format!("{login:?}").contains("hush"), "not in a debug print");
        std::fs::write(&path, "{\"token\": \"gantry_hush").unwrap();
        assert!(!Login::load(&path).unwrap_err().message.contains("hush"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Login::load(&path).unwrap_err().message.contains("chmod"));
    }
}
