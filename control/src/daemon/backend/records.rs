//! Configuration: records of six kinds, settings, the whole of it as one document.
//!
//! In: records that the API has checked, with their secrets. Out: the same, kept. What stands
//! elsewhere follows: proxies and repositories are told to the scheduler, a changed vCenter is opened
//! anew when it is next needed.

use async_trait::async_trait;
use gantry_api::backend::Answered;
use gantry_api::record::Record;
use gantry_api::{Problem, Records};
use gantry_common::secret::Secret;
use gantry_database::model::{
    CredentialRecord, Id, Job, Proxy, Repository, SecretSlot, Setting, TrafficRule, VCenter,
};
use gantry_database::{Entity, Page};
use serde_json::{Map, Value, json};

use super::super::{Parts, RECORDS_MAX};
use super::{Gantryd, refused};
use crate::run::now_ms;

/// What is particular to a kind of record.
trait Kept: Entity + Record {
    /// Where its secret is kept, if it has one.
    fn slot(&self) -> Option<SecretSlot> {
        None
    }

    /// Whether scheduler and runs look at it all the time.
    const IS_WATCHED: bool = false;

    /// It was changed or deleted.
    fn changed(_parts: &Parts, _id: Id) {}
}

impl Kept for VCenter {
    fn slot(&self) -> Option<SecretSlot> {
        Some(self.password())
    }

    fn changed(parts: &Parts, id: Id) {
        parts.vcenters.close(id);
    }
}

impl Kept for CredentialRecord {
    fn slot(&self) -> Option<SecretSlot> {
        Some(self.password())
    }
}

impl Kept for Proxy {
    const IS_WATCHED: bool = true;
}

impl Kept for Repository {
    const IS_WATCHED: bool = true;
}

impl Kept for Job {}
impl Kept for TrafficRule {}

#[async_trait]
impl<T: Kept> Records<T> for Gantryd {
    async fn list(&self) -> Answered<Vec<T>> {
        let mut all: Vec<T> = Vec::new();
        loop {
            let after = all.last().map(|last| Record::name(last).to_owned());
            let page = Page { after, limit: RECORDS_MAX };
            let found = self.parts.database.list::<T>(&page).await.map_err(refused)?;
            let is_last = (found.len() as u64) < u64::from(RECORDS_MAX);
            all.extend(found.into_iter().map(|stored| stored.value));
            if is_last {
                return Ok(all);
            }
        }
    }

    async fn get(&self, id: Id) -> Answered<T> {
        Ok(self.parts.database.get::<T>(id).await.map_err(refused)?.value)
    }

    async fn create(&self, record: T, secret: Option<Secret>) -> Answered<T> {
        let secrets: Vec<(SecretSlot, Secret)> = record.slot().into_iter().zip(secret).collect();
        let created = self.parts.database.create(&record, &secrets, now_ms()).await;
        created.map_err(refused)?;
        self.follow::<T>(Record::id(&record)).await?;
        Ok(record)
    }

    async fn update(&self, record: T, secret: Option<Secret>) -> Answered<T> {
        let database = &self.parts.database;
        let id = Record::id(&record);
        let version = database.get::<T>(id).await.map_err(refused)?.version;
        database.update(&record, version, now_ms()).await.map_err(refused)?;
        if let Some((slot, secret)) = record.slot().zip(secret) {
            database.set_secret(&slot, &secret).await.map_err(refused)?;
        }
        self.follow::<T>(id).await?;
        Ok(record)
    }

    async fn delete(&self, id: Id) -> Answered<()> {
        self.parts.database.delete::<T>(id).await.map_err(refused)?;
        self.follow::<T>(id).await
    }
}

impl Gantryd {
    async fn follow<T: Kept>(&self, id: Id) -> Answered<()> {
        T::changed(&self.parts, id);
        if T::IS_WATCHED {
            self.parts.refresh().await?;
        }
        Ok(())
    }

    /// Every setting that there is, as it holds now.
    pub(super) async fn all_settings(&self) -> Answered<Vec<Setting>> {
        let kept = self.parts.database.settings().await.map_err(refused)?;
        let value = |name: &str, usual: Value| {
            let kept = kept.iter().find(|setting| setting.name == name);
            Setting { name: name.to_owned(), value: kept.map_or(usual, |one| one.value.clone()) }
        };
        Ok(usual_settings().into_iter().map(|(name, usual)| value(name, usual)).collect())
    }

    pub(super) async fn keep_setting(&self, setting: Setting) -> Answered<Setting> {
        if !usual_settings().iter().any(|(name, _)| *name == setting.name) {
            return Err(Problem::not_found("config", &setting.name));
        }
        self.parts.database.set_setting(&setting).await.map_err(refused)?;
        Ok(setting)
    }

    pub(super) async fn whole_configuration(&self) -> Answered<Value> {
        let mut whole = Map::new();
        whole.insert("vcenters".into(), self.shown::<VCenter>().await?);
        whole.insert("proxies".into(), self.shown::<Proxy>().await?);
        whole.insert("repositories".into(), self.shown::<Repository>().await?);
        whole.insert("jobs".into(), self.shown::<Job>().await?);
        whole.insert("traffic_rules".into(), self.shown::<TrafficRule>().await?);
        whole.insert("credentials".into(), self.shown::<CredentialRecord>().await?);
        whole.insert("settings".into(), json!(self.all_settings().await?));
        Ok(Value::Object(whole))
    }

    async fn shown<T: Kept>(&self) -> Answered<Value> {
        let all = Records::<T>::list(self).await?;
        serde_json::to_value(all).map_err(|error| Problem::internal(error.to_string()))
    }
}

/// Every setting, with what holds unless it was set.
fn usual_settings() -> Vec<(&'static str, Value)> {
    vec![(Setting::SESSION_DAYS, json!(90))]
}
