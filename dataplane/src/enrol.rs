//! How this mover gets its certificate: it enrols with an invitation, and renews in time.
//!
//! In: an invitation, or an identity that soon ends. Out: an identity whose key never leaves this host,
//! signed by the installation's authority. Invariant: gantryd is known by its authority's certificate
//! before anything is told to it, and what it answers must make a valid identity. Must not: write files.

use std::path::Path;
use std::time::Duration;

use gantry_common::enrolment::{
    ENROL_PATH, ENROLMENT_BYTES_MAX, EnrolReply, EnrolRequest, EnrolmentToken, RENEW_PATH,
    RenewRequest,
};
use gantry_common::failure::{Failure, FailureKind};
use gantry_http::{Endpoint, HttpClient, Limits, Request, Thumbprint, header};
use serde::Serialize;

use crate::host::now_ms;
use crate::transport::{Identity, Trust};

/// Longest that gantryd may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What an enrolment gives.
#[derive(Debug)]
pub struct Enrolled {
    /// Key and certificate.
    pub identity: Identity,
    /// PEM of the authority: whom the mover trusts from now on.
    pub authority: String,
}

/// Makes a key and has it certified. Uses the invitation up.
///
/// # Errors
/// `Usage`: the invitation says what makes no sense. `Network`: gantryd was not reached. `Refused`: it is
/// not the one that invited, or does not know the invitation (any more).
pub async fn enrol(token: &EnrolmentToken) -> Result<Enrolled, Failure> {
    let authority = token.ca_sha256.parse::<Thumbprint>().map_err(|_| {
        Failure::new(FailureKind::Usage, "the invitation names no authority: have a new one made")
    })?;
    let (csr, key) = Identity::request(&token.mover)?;
    let request = EnrolRequest { mover: token.mover.clone(), secret: token.secret.clone(), csr };
    let server = Server { url: &token.url, authority, name: &token.name };
    let reply = server.post(ENROL_PATH, &request).await?;
    let identity = key.certified(Path::new("gantryd's answer"), &reply.certificate)?;
    check(&identity, reply.authority.as_bytes())?;
    Ok(Enrolled { identity, authority: reply.authority })
}

/// A certificate that holds for longer, for the same key. `authority` is the PEM of the authority that this
/// mover trusts.
///
/// # Errors
/// As [`enrol`]; `Refused` also if the key was revoked.
pub async fn renew(
    identity: &Identity,
    (api, name): (&str, &str),
    authority: &[u8],
) -> Result<Identity, Failure> {
    let thumbprint = Thumbprint::of_pem(authority).ok_or_else(|| {
        Failure::new(
            FailureKind::Usage,
            "the authority's file ([control] authority) is no PEM file",
        )
    })?;
    // gantryd knows the mover by its key: the name in the request is not looked at.
    let (csr, key) = identity.renewal_request("mover")?;
    let server = Server { url: api, authority: thumbprint, name };
    let reply = server.post(RENEW_PATH, &RenewRequest { csr }).await?;
    let renewed = key.certified(Path::new("gantryd's answer"), &reply.certificate)?;
    check(&renewed, authority)?;
    Ok(renewed)
}

/// Whether a certificate should be renewed: less than a third of its life is left. Times are since 1970.
pub fn is_due((begin, end): (Duration, Duration), now: Duration) -> bool {
    end.saturating_sub(now) < end.saturating_sub(begin) / 3
}

/// An answer is of use only if the authority vouches for it now.
fn check(identity: &Identity, authority: &[u8]) -> Result<(), Failure> {
    let trust = Trust::parse(Path::new("the authority"), authority)?;
    trust.accepts(identity, now_ms()).map_err(|error| {
        let text = format!("gantryd gave a certificate that does not hold now: {error}");
        Failure::new(FailureKind::Refused, format!("{text}; compare the clocks of both hosts"))
    })
}

/// gantryd's REST API.
struct Server<'a> {
    url: &'a str,
    authority: Thumbprint,
    name: &'a str,
}

impl Server<'_> {
    async fn post(&self, path: &str, body: &impl Serialize) -> Result<EnrolReply, Failure> {
        let usage = |text: String| Failure::new(FailureKind::Usage, text);
        let host = self.url.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
        let host = host.ok_or_else(|| usage(format!("'{}' is no https:// address", self.url)))?;
        let endpoint: Endpoint = host.parse().map_err(|error| usage(format!("{error}")))?;
        let (thumbprint, name) = (self.authority, self.name.to_owned());
        let trust = gantry_http::Trust::AuthorityThumbprint { thumbprint, name };
        let failed = |error: gantry_http::HttpError| {
            // A wrong certificate does not become right by trying again.
            let kind = match error.is_transient() {
                true => FailureKind::Network,
                false => FailureKind::Refused,
            };
            Failure::new(kind, format!("gantryd: {error}"))
        };
        let client = HttpClient::new(endpoint, &trust, Limits::default()).map_err(failed)?;
        let json = serde_json::to_vec(body)
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        let request = Request::post(path, json)
            .header(header::CONTENT_TYPE, "application/json")
            .timeout(ANSWER_WITHIN);
        let response = client.send(&request).await.map_err(failed)?;
        let status = response.status();
        let body = response.body_bounded(ENROLMENT_BYTES_MAX).await.map_err(failed)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                let text = format!("gantryd's answer cannot be read: {error}");
                Failure::new(FailureKind::Refused, text)
            });
        }
        let problem = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        let said: String = ["detail", "next"]
            .iter()
            .filter_map(|field| problem[*field].as_str())
            .collect::<Vec<_>>()
            .join("; ");
        let kind = match status.is_server_error() {
            true => FailureKind::Network,
            false => FailureKind::Refused,
        };
        Err(Failure::new(kind, format!("gantryd answered {status}: {said}")))
    }
}

#[cfg(test)]
pub(crate) mod tests;
