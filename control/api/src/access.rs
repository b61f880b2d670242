//! Who may do what: tokens, roles, and how often a log-in may fail.
//!
//! In: `Authorization` headers, the digests of known tokens, the time. Out: a [`Principal`], or a
//! refusal. Invariants: digests are compared in constant time, all of them each time; a token's text
//! is in no log. No I/O.

use std::collections::HashMap;
use std::net::IpAddr;

use axum::http::HeaderValue;
use gantry_common::secret::Secret;
use subtle::ConstantTimeEq;

use crate::limits;
use crate::model::Role;
use crate::problem::Problem;

/// What begins every token, so that one is recognised where it should not be.
pub const TOKEN_PREFIX: &str = "gantry_";

/// SHA-256 of a token's text.
pub type TokenDigest = [u8; 32];

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Public,
    /// Who has a token of at least this role.
    Role(Role),
}

impl Access {
    /// Everybody with a token: looking.
    pub const VIEWER: Access = Access::Role(Role::Viewer);
    /// Running jobs, restoring.
    pub const OPERATOR: Access = Access::Role(Role::Operator);
    /// Changing what there is.
    pub const ADMIN: Access = Access::Role(Role::Admin);

    /// Whether somebody with this role (nobody: without a token) is let in.
    pub fn allows(self, role: Option<Role>) -> bool {
        match self {
            Access::Public => true,
            Access::Role(needed) => role.is_some_and(|role| rank(role) >= rank(needed)),
        }
    }
}

fn rank(role: Role) -> u8 {
    match role {
        Role::Viewer => 0,
        Role::Operator => 1,
        Role::Admin => 2,
    }
}

/// A token as it is kept: never its text.
#[derive(Debug, Clone)]
pub struct KnownToken {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// SHA-256 of its text.
    pub digest: TokenDigest,
    /// From then on it is worth nothing, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token's id.
    pub token: String,
    /// The token's name.
    pub name: String,
    /// Its role; nothing: came without a token, on a public route.
    pub role: Option<Role>,
}

impl Principal {
    /// Somebody without a token.
    pub fn nobody() -> Principal {
        Principal { token: String::new(), name: "nobody".to_owned(), role: None }
    }
}

/// A token's text from 32 random bytes.
pub fn token_text(random: [u8; 32]) -> Secret {
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Secret::new(format!("{TOKEN_PREFIX}{hex}"))
}

/// The digest that is kept instead of a token. Tokens are 256 random bits: no slow hash is needed.
pub fn token_digest(token: &str) -> TokenDigest {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// The token that a header carries.
///
/// # Errors
/// 401 when there is none, or the header is not what it should be.
pub(crate) fn bearer(header: Option<&HeaderValue>) -> Result<&str, Problem> {
    let header = header.ok_or_else(|| Problem::unauthorized("the request carries no token"))?;
    let text = header.to_str().ok().filter(|text| text.len() <= limits::TOKEN_BYTES_MAX);
    let (scheme, token) = text
        .and_then(|text| text.split_once(' '))
        .ok_or_else(|| Problem::unauthorized("the Authorization header is no bearer token"))?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::unauthorized("the Authorization header is no bearer token"));
    }
    Ok(token.trim())
}

/// Whose token it is. Looks at every known one.
pub(crate) fn find(token: &str, known: &[KnownToken], now_ms: u64) -> Option<Principal> {
    let digest = token_digest(token);
    let mut found = None;
    for candidate in known {
        if bool::from(candidate.digest.ct_eq(&digest)) {
            found = Some(candidate);
        }
    }
    let found = found.filter(|token| token.expires_ms.is_none_or(|expires| now_ms < expires))?;
    let (token, name) = (found.id.clone(), found.name.clone());
    Some(Principal { token, name, role: Some(found.role) })
}

/// How often an address may fail: a bucket each, of a bounded number of addresses.
#[derive(Debug, Default)]
pub(crate) struct LoginLimiter {
    buckets: HashMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Failures that are still answered at once.
    left: u32,
    /// Up to when the bucket was refilled.
    since_ms: u64,
}

impl Bucket {
    fn refilled(self, now_ms: u64) -> Bucket {
        let step_ms = limits::LOGIN_REFILL_SECONDS * 1000;
        let steps = now_ms.saturating_sub(self.since_ms) / step_ms;
        let left = u64::from(self.left).saturating_add(steps);
        if left >= u64::from(limits::LOGIN_FAILURES_BURST) {
            return Bucket { left: limits::LOGIN_FAILURES_BURST, since_ms: now_ms };
        }
        Bucket { left: left as u32, since_ms: self.since_ms + steps * step_ms }
    }
}

/// Addresses of one IPv6 network count as one.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let mut octets = six.octets();
            octets[8..].fill(0);
            IpAddr::from(octets)
        }
        four => four,
    }
}

impl LoginLimiter {
    /// Whether a token of this address is looked at.
    ///
    /// # Errors
    /// 429 with how long to wait.
    pub(crate) fn admit(&self, address: IpAddr, now_ms: u64) -> Result<(), Problem> {
        let Some(bucket) = self.buckets.get(&origin(address)) else { return Ok(()) };
        let bucket = bucket.refilled(now_ms);
        if bucket.left > 0 {
            return Ok(());
        }
        let wait_ms =
            (bucket.since_ms + limits::LOGIN_REFILL_SECONDS * 1000).saturating_sub(now_ms);
        let detail = format!("too many wrong tokens came from {address}");
        Err(Problem::too_many(detail, wait_ms.div_ceil(1000).max(1)))
    }

    /// Notes a failure.
    pub(crate) fn failed(&mut self, address: IpAddr, now_ms: u64) {
        let origin = origin(address);
        if !self.buckets.contains_key(&origin) && self.buckets.len() >= limits::LOGIN_ADDRESSES_MAX
        {
            self.forget_one(now_ms);
        }
        let full = Bucket { left: limits::LOGIN_FAILURES_BURST, since_ms: now_ms };
        let bucket = self.buckets.entry(origin).or_insert(full);
        let refilled = bucket.refilled(now_ms);
        *bucket = Bucket { left: refilled.left.saturating_sub(1), ..refilled };
    }

    fn forget_one(&mut self, now_ms: u64) {
        let burst = limits::LOGIN_FAILURES_BURST;
        self.buckets.retain(|_, bucket| bucket.refilled(now_ms).left < burst);
        if self.buckets.len() >= limits::LOGIN_ADDRESSES_MAX {
            let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.since_ms);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.buckets.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use axum::http::HeaderValue;

    use super::{Access, KnownToken, LoginLimiter, bearer, find, token_digest, token_text};
    use crate::limits;
    use crate::model::Role;

    fn known(id: &str, token: &str, expires_ms: Option<u64>) -> KnownToken {
        let digest = token_digest(token);
        KnownToken { id: id.into(), name: id.into(), role: Role::Viewer, digest, expires_ms }
    }

    #[test]
    fn a_higher_role_may_what_a_lower_may() {
        let roles = [None, Some(Role::Viewer), Some(Role::Operator), Some(Role::Admin)];
        let table = [
            (Access::Public, [true, true, true, true]),
            (Access::VIEWER, [false, true, true, true]),
            (Access::OPERATOR, [false, false, true, true]),
            (Access::ADMIN, [false, false, false, true]),
        ];
        for (access, allowed) in table {
            assert_eq!(roles.map(|role| access.allows(role)), allowed, "{access:?}");
        }
    }

    #[test]
    fn tokens_are_found_by_their_digest_until_they_expire() {
        let token = token_text([7; 32]);
        let tokens = [known("a", "gantry_00", None), known("b", token.reveal(), Some(1000))];
        assert_eq!(find(token.reveal(), &tokens, 999).map(|who| who.token), Some("b".into()));
        assert_eq!(find(token.reveal(), &tokens, 1000), None);
        assert_eq!(find("gantry_01", &tokens, 0), None);
        assert_eq!(find("", &tokens, 0), None);
    }

    #[test]
    fn headers_that_are_no_bearer_token_are_refused() {
        for bad in ["", "Bearer", "Basic abc", "gantry_00", &format!("Bearer {}", "x".repeat(300))]
        {
            let header = HeaderValue::from_str(bad).unwrap();
            assert_eq!(bearer(Some(&header)).unwrap_err().status, 401, "{bad}");
        }
        assert_eq!(bearer(None).unwrap_err().status, 401);
        assert_eq!(bearer(Some(&HeaderValue::from_static("bearer  x "))).unwrap(), "x");
    }

    #[test]
    fn failures_are_limited_by_address_and_the_memory_of_them_is_bounded() {
        let mut limiter = LoginLimiter::default();
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let other = IpAddr::from(Ipv4Addr::new(10, 0, 0, 1));
        for _ in 0..limits::LOGIN_FAILURES_BURST {
            limiter.admit(address, 0).unwrap();
            limiter.failed(address, 0);
        }
        let refused = limiter.admit(address, 0).unwrap_err();
        assert_eq!((refused.status, refused.retry_after_seconds), (429, Some(6)));
        limiter.admit(other, 0).unwrap();
        limiter.admit(address, 6_000).unwrap();
        limiter.failed(address, 6_000);
        assert!(limiter.admit(address, 6_000).is_err());
        for number in 0..10_000u32 {
            limiter.failed(IpAddr::from(number.to_be_bytes()), u64::from(number));
        }
        assert!(limiter.buckets.len() <= limits::LOGIN_ADDRESSES_MAX);
        // One IPv6 network is one address.
        for last in 0..limits::LOGIN_FAILURES_BURST as u16 {
            limiter.failed(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]), 20_000);
        }
        assert!(limiter.admit("2001:db8::ffff".parse().unwrap(), 20_000).is_err());
    }
}
