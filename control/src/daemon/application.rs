//! A job's guest steps with the login that they run as.
//!
//! In: the job, a machine's name, the database's credentials. Out: [`GuestSteps`]; a credential that
//! cannot be had is told by the step that needs it. Must not: keep a password longer than a run.

use gantry_database::Database;
use gantry_database::model::{ApplicationPolicy, ApplicationSettings, CredentialRecord, Id};

use crate::application::OnFailure;
use crate::run::guest::GuestSteps;
use crate::vcenter::guest::GuestLogin;

/// What is done in this machine's guest; nothing if the job does nothing in guests.
pub async fn guest_steps(
    database: &Database,
    settings: &ApplicationSettings,
    vm: &str,
) -> Option<GuestSteps> {
    let scripts = [&settings.pre_freeze, &settings.post_thaw, &settings.after_success];
    let is_on = settings.enabled && scripts.iter().any(|script| script.is_some());
    let on_failure = match settings.policy {
        ApplicationPolicy::Success => OnFailure::Fail,
        ApplicationPolicy::Ignore => OnFailure::Ignore,
        ApplicationPolicy::Disabled => return None,
    };
    if !is_on {
        return None;
    }
    let login = match credential(settings, vm) {
        Some(id) => login(database, id).await,
        None => Err(format!("the job names no credential for {vm}")),
    };
    Some(GuestSteps {
        on_failure,
        login,
        pre_freeze: settings.pre_freeze.clone(),
        post_thaw: settings.post_thaw.clone(),
        after_success: settings.after_success.clone(),
    })
}

/// The first whose pattern fits the machine, else the job's.
fn credential(settings: &ApplicationSettings, vm: &str) -> Option<Id> {
    let fits = |pattern: &str| {
        wildmatch::WildMatch::new(&pattern.to_lowercase()).matches(&vm.to_lowercase())
    };
    let own = settings.vm_credentials.iter().find(|each| fits(&each.vm));
    own.map(|each| each.credential).or(settings.credential)
}

async fn login(database: &Database, id: Id) -> Result<GuestLogin, String> {
    let record = database.get::<CredentialRecord>(id).await.map_err(|error| error.to_string())?;
    let password = database.secret(&record.value.password()).await;
    let password = password.map_err(|error| error.to_string())?;
    let password = password
        .ok_or_else(|| format!("credential {} has no password: set it", record.value.name))?;
    Ok(GuestLogin { user: record.value.user, password })
}

#[cfg(test)]
mod tests {
    use super::{ApplicationSettings, Id, credential};
    use gantry_database::model::VmCredential;

    #[test]
    fn the_first_pattern_that_fits_names_the_credential() {
        let [all, db, own] = [1, 2, 3].map(Id::draw);
        let settings = ApplicationSettings {
            credential: Some(all),
            vm_credentials: vec![
                VmCredential { vm: "DB-1".into(), credential: own },
                VmCredential { vm: "db-*".into(), credential: db },
            ],
            ..ApplicationSettings::default()
        };
        assert_eq!(credential(&settings, "db-1"), Some(own));
        assert_eq!(credential(&settings, "db-2"), Some(db));
        assert_eq!(credential(&settings, "web"), Some(all));
    }
}
