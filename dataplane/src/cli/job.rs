//! One request to a repository, from arguments to its report, with a line of progress.

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::manage::{ManageReport, ManageRequest};

use super::arguments::{RepoArguments, RepositoryArguments};
use super::display::JobLine;
use super::{Use, connector, runtime};
use crate::connect::Connector;

/// Asks the repository of a `repo` command.
pub(super) fn ask_repo(
    arguments: &RepoArguments,
    use_: Use,
    request: ManageRequest,
) -> Result<ManageReport, Failure> {
    ask(&connector(&arguments.repo, &arguments.access, use_)?, request)
}

/// Asks the repository of a `point` command.
pub(super) fn ask_points(
    arguments: &RepositoryArguments,
    request: ManageRequest,
) -> Result<ManageReport, Failure> {
    ask(&connector(&arguments.repo, &arguments.access, Use::Write)?, request)
}

fn ask(connector: &Connector, request: ManageRequest) -> Result<ManageReport, Failure> {
    let line = JobLine::new();
    let mut show = |phase: &str, done, total| line.show(phase, done, total);
    runtime()?.block_on(connector.manage(request, &mut show))
}

/// A report of another kind than what was asked for.
pub(super) fn unexpected() -> Failure {
    Failure::new(FailureKind::Refused, "the repository's report is not that of the request")
}
