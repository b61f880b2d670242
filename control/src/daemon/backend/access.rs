//! Who is let in: people by tokens, movers by invitations.
//!
//! In: requests of administrators and movers. Out: tokens (never their text), invitations, movers.
//! Invariant: there is always an administrator's token that lets in.

use std::time::Duration;

use gantry_api::Problem;
use gantry_api::access::{KnownToken, TokenDigest};
use gantry_api::backend::Answered;
use gantry_api::views::{
    Enrolment, EnrolmentMade, EnrolmentRequest, MoverState, ServedRepository, Token, TokenRequest,
};
use gantry_common::enrolment::MoverRole;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::PeerId;
use gantry_database::Page;
use gantry_database::model::{self, Id, TokenRecord};

use super::super::RECORDS_MAX;
use super::{Gantryd, refused};
use crate::run::now_ms;

/// A use of a token is written down at most this often.
const NOTE_EVERY_MS: u64 = 60_000;

fn hex(digest: &TokenDigest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(hex: &str) -> Option<TokenDigest> {
    let mut digest = TokenDigest::default();
    if hex.len() != 2 * digest.len() {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// A request of a mover that is not let in.
pub(super) fn not_let_in(failure: Failure) -> Problem {
    match failure.kind {
        FailureKind::Refused => {
            Problem::forbidden(failure.message, "make a new invitation: gantry mover invite")
        }
        _ => failure.into(),
    }
}

fn served(facts: &gantry_common::control::RepositoryFacts) -> ServedRepository {
    ServedRepository {
        id: facts.id.to_string(),
        port: facts.port,
        path: facts.path.clone(),
        capacity_bytes: facts.capacity_bytes,
        free_bytes: facts.free_bytes,
    }
}

impl Gantryd {
    async fn token_records(&self) -> Answered<Vec<TokenRecord>> {
        let mut all: Vec<TokenRecord> = Vec::new();
        loop {
            let after = all.last().map(|last| last.name.clone());
            let page = Page { after, limit: RECORDS_MAX };
            let found = self.parts.database.tokens(&page).await.map_err(refused)?;
            let is_last = (found.len() as u64) < u64::from(RECORDS_MAX);
            all.extend(found);
            if is_last {
                return Ok(all);
            }
        }
    }

    pub(super) async fn all_known_tokens(&self) -> Answered<Vec<KnownToken>> {
        let known = |record: TokenRecord| {
            let digest = digest(&record.hash)?;
            let TokenRecord { id, name, role, expires_ms, .. } = record;
            Some(KnownToken { id: id.to_string(), name, role, digest, expires_ms })
        };
        Ok(self.token_records().await?.into_iter().filter_map(known).collect())
    }

    pub(super) async fn all_tokens(&self) -> Answered<Vec<Token>> {
        Ok(self.token_records().await?.into_iter().map(Token::from).collect())
    }

    pub(super) async fn note_token(&self, id: &str, now_ms: u64) {
        let Ok(id) = id.parse::<Id>() else { return };
        let Ok(last) = self.parts.database.token_last_used(id).await else { return };
        if last.is_none_or(|last| last.saturating_add(NOTE_EVERY_MS) < now_ms)
            && let Err(error) = self.parts.database.touch_token(id, now_ms).await
        {
            tracing::warn!("the use of a token could not be written down: {error}");
        }
    }

    pub(super) async fn keep_token(
        &self,
        request: TokenRequest,
        digest: TokenDigest,
        now_ms: u64,
    ) -> Answered<Token> {
        let record = TokenRecord {
            id: Id::draw(now_ms),
            name: request.name,
            role: request.role,
            hash: hex(&digest),
            created_ms: now_ms,
            expires_ms: request.valid_ms.map(|valid| now_ms.saturating_add(valid)),
            last_used_ms: None,
        };
        self.parts.database.create_token(&record).await.map_err(refused)?;
        Ok(Token::from(record))
    }

    pub(super) async fn drop_token(&self, id: Id, now_ms: u64) -> Answered<()> {
        match self.parts.database.delete_token(id, now_ms).await.map_err(refused)? {
            true => Ok(()),
            false => Err(Problem::conflict(
                "it is the last administrator's token: nobody could change anything any more",
                "make another one first: gantry token create --role admin",
            )),
        }
    }

    pub(super) async fn invite(&self, request: EnrolmentRequest) -> Answered<EnrolmentMade> {
        let EnrolmentRequest { mover, role, valid_seconds } = request;
        let (now, valid) = (now_ms(), Duration::from_secs(valid_seconds));
        let told = match role {
            model::MoverRole::Proxy => MoverRole::Proxy,
            model::MoverRole::Repository => MoverRole::Repository,
        };
        let invited = self.admission.invite(&mover, told, valid, now).await?;
        let (created_ms, expires_ms) = (now, invited.expires_ms);
        let enrolment = Enrolment { mover, role, created_ms, expires_ms, used_ms: None };
        Ok(EnrolmentMade { enrolment, line: invited.token.reveal().to_owned() })
    }

    pub(super) async fn all_movers(&self) -> Answered<Vec<MoverState>> {
        let records = self.parts.database.movers().await.map_err(refused)?;
        let views = self.parts.fleet.movers();
        let state = |mover: model::MoverRecord| {
            let view = views.iter().find(|view| view.pin == mover.pin);
            MoverState {
                connected_since_ms: view.and_then(|view| view.connected_since_ms),
                software: view.map(|view| view.software.clone()).unwrap_or_default(),
                host: view.map(|view| view.facts.host.clone()).unwrap_or_default(),
                cores: view.map_or(0, |view| view.facts.cores),
                tasks_running: view.map_or(0, |view| view.tasks_running as u64),
                refused: view.and_then(|view| view.refused.clone()),
                repository: view.and_then(|view| view.facts.repository.as_ref()).map(served),
                mover,
            }
        };
        Ok(records.into_iter().map(state).collect())
    }

    /// For good: it is cut off now, and not let in again.
    pub(super) async fn lock_out(&self, pin: &str) -> Answered<()> {
        let found = match pin.parse::<PeerId>() {
            Ok(pin) => self.parts.database.mover(pin).await.map_err(refused)?,
            Err(_) => None,
        };
        let mut mover = found.ok_or_else(|| Problem::not_found("mover", pin))?;
        mover.revoked_ms = mover.revoked_ms.or(Some(now_ms()));
        self.parts.database.update_mover(&mover).await.map_err(refused)?;
        self.parts.fleet.revoke(mover.pin);
        tracing::warn!(mover = mover.name, "a mover was locked out");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{digest, hex};

    #[test]
    fn digests_come_back_and_what_is_none_is_no_token() {
        let known = [0xa7; 32];
        assert_eq!(digest(&hex(&known)), Some(known));
        for text in ["", "a7", &"g7".repeat(32), &"é".repeat(32)] {
            assert_eq!(digest(text), None, "{text}");
        }
    }
}
