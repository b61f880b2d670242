//! Answers to gantryd's questions, from this process's own repository.
//!
//! In: a question and its number. Out: reports with that number, a page at a time. Invariant: a bounded
//! number of questions is worked on at once; what looks after the repository goes on when the link that
//! asked for it is gone.

use std::rc::Rc;

use gantry_common::control::{Answer, Question, Report};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::manage::ManageReport;
use gantry_common::wire::PointSummary;
use tokio::sync::mpsc;

use super::{Agent, facts};
use crate::repository::{Repository, copies, off_this_thread};
use crate::store::admin;

/// Questions at a time.
const QUESTIONS_MAX: usize = 16;
/// Points in one page.
const POINTS_A_PAGE: usize = 64;

impl Agent {
    /// Answers in its own time.
    pub(super) fn ask(
        self: &Rc<Self>,
        number: u64,
        question: Question,
        answers: mpsc::Sender<Report>,
    ) {
        let agent = Rc::clone(self);
        let is_too_many = self.questions_running.get() >= QUESTIONS_MAX;
        if !is_too_many {
            self.questions_running.set(self.questions_running.get() + 1);
        }
        tokio::task::spawn_local(async move {
            if is_too_many {
                let text = format!("{QUESTIONS_MAX} questions are being answered: ask again later");
                let answer = Err(Failure::new(FailureKind::Target, text));
                let _ = answers.send(Report::Answer { number, answer, more: false }).await;
                return;
            }
            let found = agent.answer(question).await;
            agent.questions_running.set(agent.questions_running.get() - 1);
            let pages = match found {
                Ok(pages) => pages.into_iter().map(Ok).collect(),
                Err(failure) => vec![Err(failure)],
            };
            let last = pages.len().saturating_sub(1);
            for (at, answer) in pages.into_iter().enumerate() {
                let report = Report::Answer { number, answer, more: at < last };
                // A link that is gone: gantryd asks again.
                if answers.send(report).await.is_err() {
                    return;
                }
            }
        });
    }

    /// The pages of an answer, at least one.
    async fn answer(&self, question: Question) -> Result<Vec<Answer>, Failure> {
        let whole = |answer| Ok(vec![answer]);
        match question {
            Question::Facts => whole(Answer::Facts(facts::facts(&self.facts))),
            Question::Points { name, deleted } => {
                let points = points(self.repository()?, name, deleted).await?;
                let mut pages: Vec<_> = points
                    .chunks(POINTS_A_PAGE)
                    .map(|page| Answer::Points(page.to_vec()))
                    .collect();
                if pages.is_empty() {
                    pages.push(Answer::Points(Vec::new()));
                }
                Ok(pages)
            }
            Question::VmConfig { name, point } => {
                let point = point.parse().map_err(|error| {
                    Failure::new(FailureKind::Usage, format!("the point '{point}': {error}"))
                })?;
                let reader = self.repository()?.reader().clone();
                let show = move || admin::show(&reader, &name, Some(point)).map_err(Failure::from);
                whole(Answer::VmConfig(off_this_thread(show).await?.vm_config))
            }
            Question::KeepCopy { created_ms, bytes } => {
                self.repository()?;
                let served = self.facts.repository.as_ref();
                let folder = served.map(|served| served.path.clone()).unwrap_or_default();
                off_this_thread(move || copies::keep(&folder, created_ms, &bytes)).await?;
                whole(Answer::CopyKept)
            }
            Question::Manage(request) => {
                let report = self.repository()?.manage_for("gantryd", request).await?;
                // Encoding cuts its lists to what fits.
                let report = ManageReport::decode(&report.encode()).ok_or_else(|| {
                    Failure::new(FailureKind::Internal, "a report that cannot be read back")
                })?;
                whole(Answer::Manage(report))
            }
        }
    }

    fn repository(&self) -> Result<&Rc<Repository>, Failure> {
        self.repository.as_ref().ok_or_else(|| {
            Failure::new(FailureKind::Usage, "this mover is a proxy: it serves no repository")
        })
    }
}

async fn points(
    repository: &Repository,
    name: String,
    deleted: bool,
) -> Result<Vec<PointSummary>, Failure> {
    let reader = repository.reader().clone();
    let listed = off_this_thread(move || {
        let filter = (!name.is_empty()).then_some(name.as_str());
        let lines = match deleted {
            true => admin::list_deleted(&reader, filter),
            false => admin::list(&reader, filter),
        };
        lines.map_err(Failure::from)
    });
    Ok(listed.await?.into_iter().filter_map(|line| line.summary).collect())
}
