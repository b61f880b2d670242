//! Keeps this mover's certificate valid.
//!
//! In: the clock. Out: an identity with the same key and a later end, in memory and in its file, before
//! the old one ends. Links and tasks that stand go on: they were let in by the key, which stays. Must
//! not: give the old identity up before the new one is durable.

use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};

use super::Agent;
use super::pause::pause;
use crate::enrol;
use crate::host::now_ms;

/// Between two looks at the certificate.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

impl Agent {
    /// Renews whenever it is due; forever.
    pub(super) async fn keep_certificate(&self) {
        let mut failures = 0;
        loop {
            match self.renew_if_due(now_ms()).await {
                Ok(is_new) => {
                    failures = 0;
                    if is_new {
                        tracing::info!("this mover's certificate was renewed");
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(failure) => {
                    failures += 1;
                    tracing::warn!("this mover's certificate cannot be renewed: {failure}");
                    tokio::time::sleep(pause(failures, fastrand::f64())).await;
                }
            }
        }
    }

    /// Renews if less than a third of the certificate's life is left; whether it did.
    pub(super) async fn renew_if_due(&self, now_ms: u64) -> Result<bool, Failure> {
        let Some(api) = &self.config.api else { return Ok(false) };
        let identity = self.identity.borrow().clone();
        // The authority's name for gantryd is nothing that this mover's certificate bears.
        let internal = |error: std::io::Error| {
            let text = format!("{}: {error}", self.config.authority.display());
            Failure::new(FailureKind::Usage, text)
        };
        let authority = std::fs::read(&self.config.authority).map_err(internal)?;
        let trust = crate::transport::Trust::parse(&self.config.authority, &authority)?;
        let is_due = trust
            .validity(&identity)
            .is_some_and(|validity| enrol::is_due(validity, Duration::from_millis(now_ms)));
        if !is_due {
            return Ok(false);
        }
        let renewed = enrol::renew(&identity, (api, &self.config.name), &authority).await?;
        renewed.replace(&self.program.1)?;
        *self.identity.borrow_mut() = renewed;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::agent::{ControlConfig, ProxyConfig};
    use crate::transport::{CertificateAuthority, Identity};

    #[tokio::test]
    async fn a_certificate_near_its_end_is_replaced_in_memory_and_in_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(CertificateAuthority::generate().unwrap());
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("authority.pem"), authority.certificate_pem()).unwrap();
        let api = enrol::tests::serve(Arc::clone(&authority)).await;
        let now = Duration::from_millis(now_ms());
        let [began, ends] = [now - Duration::from_secs(90), now + Duration::from_secs(30)];
        let old = authority.issue_between("proxy-1", began, ends).unwrap();
        old.save(&file("identity.pem")).unwrap();
        let config = ControlConfig {
            address: "127.0.0.1:1".into(),
            name: enrol::tests::NAME.into(),
            authority: file("authority.pem"),
            api: Some(api),
            state: file("state"),
            tasks: 1,
        };
        let program = (file("mover"), file("identity.pem"));
        let proxy = ProxyConfig::default();
        let agent = Agent::open(config, &proxy, old.clone(), None, program).unwrap();
        let early = now_ms() - 40_000;
        assert!(!agent.renew_if_due(early).await.unwrap(), "half of it is left");
        assert!(Rc::clone(&agent).renew_if_due(now_ms()).await.unwrap());
        let kept = Identity::load(&file("identity.pem")).unwrap();
        assert_eq!(kept.certificates_pem(), agent.identity.borrow().certificates_pem());
        assert_ne!(kept.certificates_pem(), old.certificates_pem());
        assert_eq!(kept.pin(), old.pin(), "peers know it by its key");
        assert!(!agent.renew_if_due(now_ms()).await.unwrap(), "it holds for a day");
    }
}
