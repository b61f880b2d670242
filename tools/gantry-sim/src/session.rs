//! Sessions of an endpoint: who is logged in, what each has open, when it expires.
//!
//! In: logins and requests with their instant. Out: sessions by cookie and by key. A session's
//! collectors, filters, views and paged retrievals go with it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::collector::Collector;
use crate::limits;
use crate::schema::{Ref, Value, object};

/// One session.
#[derive(Debug)]
pub struct Session {
    /// What clients see of it; the cookie is not derivable from it.
    pub key: Arc<str>,
    /// Who logged in.
    pub user: String,
    /// Its property collectors by id; the default one too.
    pub collectors: BTreeMap<Arc<str>, Collector>,
    /// Its views.
    pub views: Vec<Ref>,
    /// What is not yet fetched, by token.
    pub retrievals: BTreeMap<String, Retrieval>,
    login: Timestamp,
    active: Timestamp,
    active_at: Instant,
    peer: SocketAddr,
    agent: String,
}

/// A paged retrieval.
#[derive(Debug)]
pub struct Retrieval {
    /// Objects a page.
    pub page_objects: usize,
    /// The contents not yet fetched.
    pub rest: VecDeque<Value>,
}

/// All sessions of an endpoint.
#[derive(Debug, Default)]
pub struct Sessions {
    by_cookie: HashMap<Arc<str>, Session>,
}

impl Sessions {
    /// A new session; the cookie's value, or nothing when there are too many.
    pub fn open(&mut self, user: &str, peer: SocketAddr, agent: &str) -> Option<Arc<str>> {
        if self.by_cookie.len() >= limits::SESSIONS_MAX {
            return None;
        }
        let cookie: Arc<str> = secret(20).into();
        let now = Timestamp::now();
        let session = Session {
            key: crate::site::random_uuid().into(),
            user: user.to_owned(),
            collectors: BTreeMap::new(),
            views: Vec::new(),
            retrievals: BTreeMap::new(),
            login: now,
            active: now,
            active_at: Instant::now(),
            peer,
            agent: agent.chars().take(limits::NAME_BYTES_MAX).collect(),
        };
        self.by_cookie.insert(cookie.clone(), session);
        Some(cookie)
    }

    /// The session of a cookie, if it lives.
    pub fn get(&mut self, cookie: &str) -> Option<&mut Session> {
        self.by_cookie.get_mut(cookie)
    }

    /// Notes a request of a session.
    pub fn touch(&mut self, cookie: &str) {
        if let Some(session) = self.by_cookie.get_mut(cookie) {
            session.active = Timestamp::now();
            session.active_at = Instant::now();
        }
    }

    /// Ends a session; what it leaves behind in the model is returned.
    pub fn close(&mut self, cookie: &str) -> Option<Session> {
        self.by_cookie.remove(cookie)
    }

    /// Ends the session with that key.
    pub fn close_key(&mut self, key: &str) -> Option<Session> {
        let found = self.by_cookie.iter().find(|(_, session)| *session.key == *key);
        let cookie = found.map(|(cookie, _)| cookie.clone())?;
        self.close(&cookie)
    }

    /// Ends all sessions.
    pub fn close_all(&mut self) -> Vec<Session> {
        self.by_cookie.drain().map(|(_, session)| session).collect()
    }

    /// Ends those that were idle for longer.
    pub fn expire(&mut self, idle: Duration) -> Vec<Session> {
        let late = self.by_cookie.iter().filter(|(_, s)| s.active_at.elapsed() > idle);
        let cookies: Vec<Arc<str>> = late.map(|(cookie, _)| cookie.clone()).collect();
        cookies.iter().filter_map(|cookie| self.close(cookie)).collect()
    }

    /// All sessions, for the session list.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.by_cookie.values()
    }
}

impl Session {
    /// As clients see it: `UserSession`.
    #[must_use]
    pub fn describe(&self) -> Value {
        object(
            "UserSession",
            [
                ("key", (&*self.key).into()),
                ("userName", (&self.user).into()),
                ("fullName", (&self.user).into()),
                ("loginTime", self.login.into()),
                ("lastActiveTime", self.active.into()),
                ("locale", "en".into()),
                ("messageLocale", "en".into()),
                ("extensionSession", false.into()),
                ("ipAddress", self.peer.ip().to_string().into()),
                ("userAgent", (&self.agent).into()),
                ("callCount", 0i64.into()),
            ],
        )
    }
}

/// An unguessable text of that many bytes, as hexadecimal digits.
#[must_use]
pub fn secret(bytes: usize) -> String {
    let mut random = vec![0u8; bytes];
    if getrandom::fill(&mut random).is_err() {
        // Without the system's random numbers the simulator still serves the loopback interface.
        fastrand::fill(&mut random);
    }
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}
