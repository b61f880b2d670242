//! A session's live stream: what is told of it, and its numbers about once a second.
//!
//! In: a session's id, the number of the last event that the client has. Out: server-sent events:
//! `event` (its number is the SSE id, so that `Last-Event-ID` resumes), `progress`, and `end` when
//! the session is over. Invariants: nothing is queued for a client: the next look at the session
//! waits until the last answer was taken, and a client that takes nothing loses its connection
//! ([`crate::limits::STALLED_SECONDS_MAX`]); there are at most [`limits::STREAMS_MAX`] streams.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::api::Api;
use crate::backend::Backend;
use crate::limits;
use crate::model::{Id, SessionState};
use crate::problem::Problem;
use crate::server::turned;
use crate::views::{NumberedEvent, Progress};

/// The stream's state between two events.
struct Watching {
    backend: Arc<dyn Backend>,
    session: Id,
    after: u64,
    ready: VecDeque<Event>,
    pause: Duration,
    first: bool,
    ended: bool,
    stop: watch::Receiver<bool>,
    shown: Option<Progress>,
    _permit: OwnedSemaphorePermit,
}

/// Number of the last event that a client has seen; 0: none.
///
/// # Errors
/// 400 if the header is no number.
pub(crate) fn last_event(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(0) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| Problem::bad_request("Last-Event-ID is no event's number"))
}

/// Opens a stream.
pub(crate) async fn open(api: &Api, session: Id, after: u64) -> Result<Response, Problem> {
    let permit = api.streams().try_acquire_owned().map_err(|_| {
        let detail =
            format!("{} live streams are open, and no more are allowed", limits::STREAMS_MAX);
        Problem::unavailable(detail, "close one, or ask for the session now and then instead")
    })?;
    api.backend().session(session).await?;
    let watching = Watching {
        backend: api.shared_backend(),
        session,
        after,
        ready: VecDeque::new(),
        pause: api.settings().stream_poll,
        first: true,
        ended: false,
        stop: api.stop(),
        shown: None,
        _permit: permit,
    };
    let events = stream::unfold(watching, |mut watching| async move {
        let event = watching.next().await?;
        Some((Ok::<Event, Infallible>(event), watching))
    });
    let alive = KeepAlive::new().interval(Duration::from_secs(limits::STREAM_IDLE_SECONDS));
    Ok(Sse::new(events).keep_alive(alive).into_response())
}

impl Watching {
    /// The next event; nothing: the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended || *self.stop.borrow() {
                return None;
            }
            if !std::mem::take(&mut self.first) {
                tokio::select! {
                    () = tokio::time::sleep(self.pause) => {}
                    () = turned(&mut self.stop) => return None,
                }
            }
            if let Err(problem) = self.look().await {
                tracing::debug!("a stream of session {} ends: {problem}", self.session);
                return None;
            }
        }
    }

    /// Looks once: numbers first, so that a session that is over has all its events told.
    async fn look(&mut self) -> Result<(), Problem> {
        let progress = self.backend.session_progress(self.session).await?;
        let events =
            self.backend.session_events(self.session, self.after, limits::STREAM_EVENTS).await?;
        let all = events.len() < limits::STREAM_EVENTS as usize;
        // More is there already: no pause before it.
        self.first = !all;
        for told in &events {
            self.after = self.after.max(told.number);
            self.ready.push_back(event(told)?);
        }
        let over = progress.state == SessionState::Finished;
        if all && (over || self.shown.as_ref() != Some(&progress)) {
            self.ready.push_back(shown("progress", &progress)?);
            self.shown = Some(progress);
        }
        if all && over {
            let session = self.backend.session(self.session).await?;
            self.ready.push_back(shown("end", &session)?);
            self.ended = true;
        }
        Ok(())
    }
}

fn event(told: &NumberedEvent) -> Result<Event, Problem> {
    Ok(shown("event", &told.event)?.id(told.number.to_string()))
}

fn shown(kind: &str, value: &impl serde::Serialize) -> Result<Event, Problem> {
    let text = serde_json::to_string(value)
        .map_err(|error| Problem::internal(format!("writing JSON: {error}")))?;
    Ok(Event::default().event(kind).data(text))
}
