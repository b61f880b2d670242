//! Questions to movers that wait for their answers.
//!
//! In: questions with a deadline, answers in pages. Out: one reply each: the whole answer, or why
//! there is none. Invariant: what is collected is bounded; an answer counts only from the
//! connection on which its question went out.

use std::collections::BTreeMap;

use gantry_common::control::{Answer, Question};
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::wire::PointSummary;

use super::{AskId, LinkId};
use crate::limits;

/// What comes of a question.
pub type Reply = Result<Answer, Failure>;

struct Pending {
    link: LinkId,
    mover: String,
    question: Question,
    points: Vec<PointSummary>,
    points_bytes: usize,
    asked_ms: u64,
    deadline_ms: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Questions {
    pending: BTreeMap<AskId, Pending>,
    last: u64,
}

impl Questions {
    /// Notes a question.
    ///
    /// # Errors
    /// Too many wait on this connection.
    pub(super) fn ask(
        &mut self,
        link: LinkId,
        mover: &str,
        question: &Question,
        now_ms: u64,
    ) -> Result<AskId, Failure> {
        let waiting = self.pending.values().filter(|pending| pending.link == link).count();
        if waiting >= limits::MOVER_QUESTIONS_MAX {
            let text = format!("{waiting} questions to mover '{mover}' wait already: try later");
            return Err(Failure::new(FailureKind::Network, text));
        }
        self.last += 1;
        let patience_ms = match question {
            Question::Manage(_) => limits::MANAGE_MS_MAX,
            _ => limits::ANSWER_MS_MAX,
        };
        let pending = Pending {
            link,
            mover: mover.to_owned(),
            question: question.clone(),
            points: Vec::new(),
            points_bytes: 0,
            asked_ms: now_ms,
            deadline_ms: now_ms + patience_ms,
        };
        self.pending.insert(AskId(self.last), pending);
        Ok(AskId(self.last))
    }

    /// Takes an answer, or a part of one; the reply, once it is whole. An answer that nobody waits
    /// for (any more) is none.
    pub(super) fn answer(
        &mut self,
        link: LinkId,
        ask: AskId,
        answer: Reply,
        more: bool,
    ) -> Option<Reply> {
        let pending = self.pending.get_mut(&ask).filter(|pending| pending.link == link)?;
        let reply = pending.take(answer, more)?;
        self.pending.remove(&ask);
        Some(reply)
    }

    /// Nobody wants this answer any more.
    pub(super) fn give_up(&mut self, ask: AskId) {
        self.pending.remove(&ask);
    }

    /// The connection is gone, and with it the answers.
    pub(super) fn link_lost(&mut self, link: LinkId) -> Vec<(AskId, Reply)> {
        let gone = self.remove(|pending| pending.link == link).into_iter();
        let reply = |(ask, pending): (AskId, Pending)| {
            let text = format!("mover '{}' was lost before it answered", pending.mover);
            (ask, Err(Failure::new(FailureKind::Network, text)))
        };
        gone.map(reply).collect()
    }

    /// Those that have waited for too long.
    pub(super) fn overdue(&mut self, now_ms: u64) -> Vec<(AskId, Reply)> {
        let late = self.remove(|pending| now_ms >= pending.deadline_ms).into_iter();
        let reply = |(ask, pending): (AskId, Pending)| {
            let waited = (now_ms - pending.asked_ms) / 1000;
            let text = format!("mover '{}' gave no answer within {waited} s", pending.mover);
            (ask, Err(Failure::new(FailureKind::Network, text)))
        };
        late.map(reply).collect()
    }

    fn remove(&mut self, unwanted: impl Fn(&Pending) -> bool) -> BTreeMap<AskId, Pending> {
        let all = std::mem::take(&mut self.pending);
        let (gone, kept) = all.into_iter().partition(|(_, pending)| unwanted(pending));
        self.pending = kept;
        gone
    }
}

impl Pending {
    fn take(&mut self, answer: Reply, more: bool) -> Option<Reply> {
        let refuse = |what: String| {
            let text = format!("mover '{}' {what}", self.mover);
            Some(Err(Failure::new(FailureKind::Refused, text)))
        };
        match (answer, &self.question) {
            (Err(failure), _) => Some(Err(failure)),
            (Ok(Answer::Points(page)), Question::Points { .. }) => {
                let bytes: usize = page.iter().map(point_bytes).sum();
                self.points_bytes += bytes;
                if self.points_bytes > limits::ANSWER_POINTS_BYTES_MAX {
                    let max = limits::ANSWER_POINTS_BYTES_MAX >> 20;
                    return refuse(format!(
                        "lists more than {max} MiB of restore points: ask for one name"
                    ));
                }
                self.points.extend(page);
                (!more).then(|| Ok(Answer::Points(std::mem::take(&mut self.points))))
            }
            (Ok(answer @ Answer::VmConfig(_)), Question::VmConfig { .. })
            | (Ok(answer @ Answer::Manage(_)), Question::Manage(_))
            | (Ok(answer @ Answer::Facts(_)), Question::Facts)
            | (Ok(answer @ Answer::CopyKept), Question::KeepCopy { .. })
                if !more =>
            {
                Some(Ok(answer))
            }
            _ => refuse("answers something else than was asked".into()),
        }
    }
}

/// Bytes that a point takes here, nearly.
fn point_bytes(point: &PointSummary) -> usize {
    let disks = point.disks.iter();
    let disks = disks.map(|disk| disk.identity.len() + disk.label.len() + size_of_val(disk));
    point.name.len() + size_of::<PointSummary>() + disks.sum::<usize>()
}
