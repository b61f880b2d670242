//! How a mover enrols with gantryd: the one-time token, the request, the answer.
//!
//! In: what an administrator copies from gantryd to the mover's host, as one line. Out: plain data.
//! The mover connects to [`EnrolmentToken::url`], takes the server for gantryd only if the
//! authority's certificate in its chain has the SHA-256 [`EnrolmentToken::ca_sha256`], and posts an
//! [`EnrolRequest`] to [`ENROL_PATH`]; later, before its certificate expires, a [`RenewRequest`] to
//! [`RENEW_PATH`]. Invariant: the token's secret is a [`Secret`], which does not print.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// Where an [`EnrolRequest`] is posted, as JSON.
pub const ENROL_PATH: &str = "/api/v1/enroll";
/// Where a [`RenewRequest`] is posted, as JSON.
pub const RENEW_PATH: &str = "/api/v1/enroll/renew";
/// Bytes of a token, of a request and of its answer.
pub const ENROLMENT_BYTES_MAX: usize = 64 << 10;

/// What a mover is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoverRole {
    /// It reads (and, at a restore, writes) disks.
    Proxy,
    /// It serves a repository.
    Repository,
}

impl fmt::Display for MoverRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MoverRole::Proxy => "proxy",
            MoverRole::Repository => "repository",
        })
    }
}

/// What a mover needs to enrol, once. Its text form is base64url of its JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentToken {
    /// gantryd's REST API, `https://HOST:PORT`.
    pub url: String,
    /// SHA-256 of the authority's certificate (DER), in hexadecimal.
    pub ca_sha256: String,
    /// Where the mover dials afterwards, `HOST:PORT`.
    pub control: String,
    /// The name in gantryd's certificate.
    pub name: String,
    /// The mover's name.
    pub mover: String,
    /// What it is for.
    pub role: MoverRole,
    /// Proof that it was invited; holds once.
    pub secret: Secret,
}

impl EnrolmentToken {
    /// The line that an administrator copies.
    pub fn to_line(&self) -> Secret {
        let json = serde_json::to_vec(self).expect("texts always encode");
        Secret::new(URL_SAFE_NO_PAD.encode(json))
    }
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no enrolment token: copy the whole line that gantryd printed")]
pub struct NoToken;

impl FromStr for EnrolmentToken {
    type Err = NoToken;
    fn from_str(line: &str) -> Result<EnrolmentToken, NoToken> {
        let line = line.trim();
        if line.len() > ENROLMENT_BYTES_MAX {
            return Err(NoToken);
        }
        let json = URL_SAFE_NO_PAD.decode(line).map_err(|_| NoToken)?;
        serde_json::from_slice(&json).map_err(|_| NoToken)
    }
}

/// A mover asks to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// Its name, as in the token.
    pub mover: String,
    /// The token's secret.
    pub secret: Secret,
    /// PEM of a PKCS #10 request, signed with the mover's new key. Only its key is looked at.
    pub csr: String,
}

/// An enrolled mover asks for a certificate that holds for longer. That it signs with its enrolled
/// key is proof enough; the answer is no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// PEM of a PKCS #10 request, signed with the mover's enrolled key.
    pub csr: String,
}

/// The answer to either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolReply {
    /// PEM of the mover's certificate.
    pub certificate: String,
    /// PEM of the authority's certificate: whom the mover trusts.
    pub authority: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_that_reads_back_and_hides_its_secret() {
        let token = EnrolmentToken {
            url: "https://127.0.0.1:1".into(),
            ca_sha256: "ab".repeat(32),
            control: "127.0.0.1:2".into(),
            name: "gantryd".into(),
            mover: "proxy-1".into(),
            role: MoverRole::Proxy,
            secret: Secret::new("hush"),
        };
        let line = token.to_line();
        assert!(!line.reveal().contains(['\n', '=', ' ']));
        assert_eq!(format!("{}\n", line.reveal()).parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("hush"));
        let cut = &line.reveal()[..line.reveal().len() - 3];
        assert_eq!(cut.parse::<EnrolmentToken>(), Err(NoToken));
        assert_eq!("x".repeat(1 << 20).parse::<EnrolmentToken>(), Err(NoToken));
    }
}
