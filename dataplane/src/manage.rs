//! Looking after a repository, from the client's side: one request, progress, one report.
//!
//! In: a [`Connector`] and a request. Out: the report of the repository, elsewhere or in a folder.
//! The repository need not be honest: what it sends is bounded.

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;
use gantry_common::limits;
use gantry_common::manage::{ManageReport, ManageRequest};
use gantry_common::wire::{Intent, PROTOCOL, ToSource, ToTarget, check_request};

use crate::connect::Connector;
use crate::host::random;
use crate::transport::{CloseReason, OutFrame, TransportError};

impl Connector {
    /// Has a request carried out. `on_progress` is told phase, done and total now and then.
    ///
    /// # Errors
    /// `Usage` if the request breaks a bound; the repository's own failure; `Network` if the
    /// connection is lost: what was asked may then be done all the same.
    pub async fn manage(
        &self,
        request: ManageRequest,
        on_progress: &mut dyn FnMut(&str, u64, u64),
    ) -> Result<ManageReport, Failure> {
        check_request(&request)
            .map_err(|error| Failure::new(FailureKind::Usage, format!("this request: {error}")))?;
        let (mut connection, notes) = self.connect().await.map_err(Failure::from)?;
        notes.iter().for_each(|note| tracing::info!("{note}"));
        let hello = ToTarget::Hello {
            protocol: PROTOCOL,
            software: concat!("gantry-mover ", env!("CARGO_PKG_VERSION")).to_owned(),
            session: SessionId(random()?),
            intent: Intent::Manage(request),
            ticket: None,
        };
        let sent = connection.sender.send_control(OutFrame::message(&hello)).await;
        sent.map_err(Failure::from)?;
        let mut report = Vec::new();
        loop {
            let frame = connection.receiver.recv().await.map_err(lost)?;
            let frame = frame.ok_or_else(|| broken("closed before the report was whole"))?;
            match frame.decode::<ToSource>().map_err(broken)? {
                ToSource::Welcome { .. } => {}
                ToSource::Progress { phase, done, total } => on_progress(&phase, done, total),
                ToSource::Report { page, more } => {
                    take_page(&mut report, &page)?;
                    if !more {
                        connection.sender.close(CloseReason::Done);
                        let report = ManageReport::decode(&report);
                        return report.ok_or_else(|| broken("a report that cannot be read"));
                    }
                }
                ToSource::Refused { failure } | ToSource::Failed { failure, .. } => {
                    return Err(failure);
                }
                _ => return Err(broken("an answer that belongs to no request")),
            }
        }
    }
}

fn take_page(report: &mut Vec<u8>, page: &[u8]) -> Result<(), Failure> {
    if report.len() + page.len() > limits::MANAGE_REPORT_BYTES_MAX {
        return Err(broken("a report beyond its limit"));
    }
    report.extend(page);
    Ok(())
}

fn broken(what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Network, format!("the repository's answer: {what}"))
}

fn lost(error: TransportError) -> Failure {
    let failure = Failure::from(error);
    let text = format!(
        "{}; whether the request was carried out is not known: look with point list or repo stat",
        failure.message
    );
    Failure::new(failure.kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_end_is_refused() {
        let page = vec![0; limits::MANAGE_PAGE_BYTES_MAX];
        let mut report = Vec::new();
        let pages = (0..).take_while(|_| take_page(&mut report, &page).is_ok()).count();
        assert_eq!(pages * page.len(), limits::MANAGE_REPORT_BYTES_MAX);
        assert!(take_page(&mut report, &[1]).is_err());
    }
}
