//! The enrolled movers and their invitations, in the database.
//!
//! In: the fleet's questions. Out: rows. A repository mover's ticket key is a secret of the database.

use async_trait::async_trait;
use gantry_common::enrolment::MoverRole;
use gantry_common::failure::Failure;
use gantry_common::ids::PeerId;
use gantry_database::model::{self, EnrolmentRecord, MoverRecord};
use gantry_database::{Database, DatabaseError};

use crate::fleet::EnrolledMover;
use crate::fleet::registry::{EnrolmentStore, Invitation, MoverRegistry, Newcomer};

/// Over the database.
pub(super) struct DatabaseRegistry(pub(super) Database);

fn kept(role: MoverRole) -> model::MoverRole {
    match role {
        MoverRole::Proxy => model::MoverRole::Proxy,
        MoverRole::Repository => model::MoverRole::Repository,
    }
}

fn told(role: model::MoverRole) -> MoverRole {
    match role {
        model::MoverRole::Proxy => MoverRole::Proxy,
        model::MoverRole::Repository => MoverRole::Repository,
    }
}

#[async_trait]
impl MoverRegistry for DatabaseRegistry {
    async fn enrolled(&self, pin: PeerId) -> Result<Option<EnrolledMover>, Failure> {
        let found = self.0.mover(pin).await?.filter(|mover| mover.revoked_ms.is_none());
        let Some(mover) = found else { return Ok(None) };
        let ticket_key = match mover.role {
            model::MoverRole::Repository => self.0.secret(&mover.ticket_key()).await?,
            model::MoverRole::Proxy => None,
        };
        let (name, role) = (mover.name, told(mover.role));
        Ok(Some(EnrolledMover { pin, name, role, ticket_key }))
    }
}

#[async_trait]
impl EnrolmentStore for DatabaseRegistry {
    async fn issue(&self, invitation: Invitation) -> Result<(), Failure> {
        let record = EnrolmentRecord {
            hash: invitation.secret_sha256,
            mover: invitation.mover,
            role: kept(invitation.role),
            created_ms: invitation.created_ms,
            expires_ms: invitation.expires_ms,
            used_ms: None,
        };
        Ok(self.0.create_enrolment(&record, invitation.created_ms).await?)
    }

    async fn take(
        &self,
        secret_sha256: &str,
        newcomer: Newcomer,
    ) -> Result<Option<Invitation>, Failure> {
        let record = MoverRecord {
            pin: newcomer.pin,
            name: newcomer.mover,
            // The invitation's counts.
            role: model::MoverRole::Proxy,
            enrolled_ms: newcomer.now_ms,
            revoked_ms: None,
            certificate_expires_ms: newcomer.certificate_expires_ms,
        };
        // Kept before the mover is let in: nobody may find it enrolled and without a key.
        self.0.set_secret(&record.ticket_key(), &newcomer.ticket_key).await?;
        let enrolled = match self.0.enrol(secret_sha256, &record, newcomer.now_ms).await {
            Ok(enrolled) => enrolled,
            Err(error) => {
                self.0.delete_secret(&record.ticket_key()).await?;
                return match error {
                    DatabaseError::NotFound { .. } | DatabaseError::Spent { .. } => Ok(None),
                    other => Err(other.into()),
                };
            }
        };
        Ok(Some(Invitation {
            secret_sha256: secret_sha256.to_owned(),
            mover: enrolled.name,
            role: told(enrolled.role),
            created_ms: newcomer.now_ms,
            expires_ms: newcomer.now_ms,
        }))
    }

    async fn renewed(&self, pin: PeerId, certificate_expires_ms: u64) -> Result<(), Failure> {
        let Some(mut mover) = self.0.mover(pin).await? else { return Ok(()) };
        mover.certificate_expires_ms = certificate_expires_ms;
        Ok(self.0.update_mover(&mover).await?)
    }
}
