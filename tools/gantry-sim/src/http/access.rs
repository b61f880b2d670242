//! Who may fetch from `/folder`: a session's cookie, a one-time ticket, or name and password.

use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap};

use super::session_cookie;
use crate::sim::Sim;

/// The name of the cookie that carries a one-time ticket.
const TICKET_COOKIE: &str = "vmware_cgi_ticket";
/// Longest `Authorization` header that is looked at, bytes.
const AUTHORIZATION_BYTES_MAX: usize = 4096;

/// Whether the request may be served. Downloads do not prolong the session, as on real servers.
pub fn allowed(sim: &Sim, at: usize, method: &str, target: &str, headers: &HeaderMap) -> bool {
    if let Some(authorization) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok())
        && basic(sim, authorization)
    {
        return true;
    }
    let mut state = sim.lock();
    crate::methods::expire(&mut state, &sim.options);
    let endpoint = &mut state.endpoints[at];
    if let Some(ticket) = cookie(headers, TICKET_COOKIE)
        && endpoint.tickets.redeem(&ticket, method, target)
    {
        return true;
    }
    session_cookie(headers).is_some_and(|cookie| endpoint.sessions.get(&cookie).is_some())
}

fn cookie(headers: &HeaderMap, wanted: &str) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|all| all.split(';')).filter_map(|p| p.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == wanted)?;
    Some(value.trim_matches('"').to_owned())
}

fn basic(sim: &Sim, authorization: &str) -> bool {
    let Some(encoded) = authorization.strip_prefix("Basic ") else { return false };
    if encoded.len() > AUTHORIZATION_BYTES_MAX {
        return false;
    }
    let decoded = base64(encoded.trim()).and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(decoded) = decoded else { return false };
    let Some((user, password)) = decoded.split_once(':') else { return false };
    user == sim.options.user && sim.options.password.is(password)
}

/// Decodes base64 (RFC 4648, padded).
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let digit = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        word = word << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(word >> bits & 255).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_decoded_and_rubbish_refused() {
        assert_eq!(base64("dXNlcjpwYXNz").as_deref(), Some(&b"user:pass"[..]));
        assert_eq!(base64("YQ==").as_deref(), Some(&b"a"[..]));
        assert_eq!(base64("a b"), None);
    }
}
