//! What the configured records have in common: kind, id, name, checks, what they refer to.

use serde::{Serialize, de::DeserializeOwned};

use crate::model::{
    CredentialRecord, Id, Invalid, Job, Proxy, ProxyChoice, Repository, Schedule, TrafficRule,
    VCenter,
};

/// A configured record.
pub trait Entity: Serialize + DeserializeOwned + Clone + Send + Sync {
    /// What it is called, in messages and in the table.
    const KIND: &'static str;
    /// Its id.
    fn id(&self) -> Id;
    /// Its name, unique among its kind.
    fn name(&self) -> &str;
    /// Checks every field.
    ///
    /// # Errors
    /// The field and what to do.
    fn check(&self) -> Result<(), Invalid>;
    /// The records that it refers to: field, kind, id.
    fn uses(&self) -> Vec<(&'static str, &'static str, Id)> {
        Vec::new()
    }
}

macro_rules! entity {
    ($type:ty, $kind:literal $(, $uses:expr)?) => {
        impl Entity for $type {
            const KIND: &'static str = $kind;
            fn id(&self) -> Id {
                self.id
            }
            fn name(&self) -> &str {
                &self.name
            }
            fn check(&self) -> Result<(), Invalid> {
                self.validate()
            }
            $(fn uses(&self) -> Vec<(&'static str, &'static str, Id)> {
                $uses(self)
            })?
        }
    };
}

entity!(VCenter, "vcenter");
entity!(Proxy, "proxy");
entity!(Repository, "repository");
entity!(CredentialRecord, "credential");
entity!(TrafficRule, "traffic rule");
entity!(Job, "job", job_uses);

/// The field by which a job follows another.
pub(super) const FOLLOWS: &str = "schedule.job";

fn job_uses(job: &Job) -> Vec<(&'static str, &'static str, Id)> {
    let mut uses = vec![
        ("vcenter", VCenter::KIND, job.vcenter),
        ("repository", Repository::KIND, job.repository),
    ];
    if let ProxyChoice::Chosen { proxies } = &job.proxies {
        uses.extend(proxies.iter().map(|id| ("proxies.proxies", Proxy::KIND, *id)));
    }
    if let Schedule::After { job } = &job.schedule {
        uses.push((FOLLOWS, Job::KIND, *job));
    }
    let credentials = job.application.credentials();
    uses.extend(credentials.map(|id| ("application.credential", CredentialRecord::KIND, id)));
    uses.sort();
    uses.dedup();
    uses
}
