//! Steps in the guest around the snapshot: before it, after it, and after the point was committed.
//!
//! In: [`GuestSteps`] of the job, the run's document. Out: lines of the log; a failure where the job
//! wants one. Invariants: that the guest may be frozen is written down before its first script runs,
//! and a guest that may be frozen is thawed whatever happened, also by a control plane that was started
//! again; what follows success runs at most once, and only for a committed point.
//!
//! Must not: be the reason why a snapshot stays.

use std::time::Duration;

use bytes::Bytes;
use gantry_common::failure::{Failure, FailureKind};
use gantry_database::model::{GuestScript, ScriptSource};
use tokio::sync::watch;

use super::document::{Event, Outcome, RunDocument, RunState};
use super::drive::note;
use super::prepare::Subject;
use super::site::{Severity, Site};
use super::{Context, failed};
use crate::application::{self, Family, OnFailure, Script, ScriptRun};
use crate::broker::VmConfig;
use crate::cbt::PolicyOutcome;
use crate::limits;
use crate::vcenter::guest::GuestLogin;

/// What is to be done in the guest of one machine.
#[derive(Debug, Clone)]
pub struct GuestSteps {
    /// What a failure means.
    pub on_failure: OnFailure,
    /// As whom, or why nobody can log in.
    pub login: Result<GuestLogin, String>,
    /// Before the snapshot.
    pub pre_freeze: Option<GuestScript>,
    /// After it.
    pub post_thaw: Option<GuestScript>,
    /// After a point was committed.
    pub after_success: Option<GuestScript>,
}

/// Which of the scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    PreFreeze,
    PostThaw,
    AfterSuccess,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::PreFreeze => "pre-freeze",
            Step::PostThaw => "post-thaw",
            Step::AfterSuccess => "after-success",
        }
    }

    fn script(self, steps: &GuestSteps) -> Option<&GuestScript> {
        match self {
            Step::PreFreeze => steps.pre_freeze.as_ref(),
            Step::PostThaw => steps.post_thaw.as_ref(),
            Step::AfterSuccess => steps.after_success.as_ref(),
        }
    }
}

/// How a step went.
enum Ended {
    /// It did what it should, or there was nothing to do.
    Well,
    /// It ran and failed, or cannot be run however often it is tried.
    Badly(String),
    /// The guest could not be reached: a further try may help.
    Unreached(String),
}

/// Before the snapshot. That the guest may be frozen is durable before.
pub(super) async fn freeze<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
    subject: &Subject,
) -> Result<(), Failure> {
    let Some(steps) = context.guest else { return Ok(()) };
    if steps.pre_freeze.is_none() && steps.post_thaw.is_none() {
        return Ok(());
    }
    if &*subject.facts.power_state != "poweredOn" {
        let text = format!(
            "guest scripts were not run: the machine is {}, nothing in it works on its disks",
            subject.facts.power_state
        );
        context.info(None, &text);
        return Ok(());
    }
    note(context, document, Event::FreezeGuest).await?;
    let ended = run(context, steps, Step::PreFreeze, subject).await;
    judge(context, steps, Step::PreFreeze, ended)
}

/// Right after the snapshot.
pub(super) async fn thaw<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
    subject: &Subject,
) -> Result<(), Failure> {
    let Some(steps) = context.guest.filter(|_| document.is_guest_frozen) else { return Ok(()) };
    let ended = run(context, steps, Step::PostThaw, subject).await;
    if !matches!(ended, Ended::Unreached(_)) {
        note(context, document, Event::GuestThawed).await?;
    }
    judge(context, steps, Step::PostThaw, ended)
}

/// Thaws a guest that an interrupted or failed run has left; what fails is told.
pub(super) async fn thaw_left<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
) -> Result<(), Failure> {
    if !document.is_guest_frozen {
        return Ok(());
    }
    let thawed = match super::prepare::subject(context, &document.vm, 1) {
        Ok(subject) => thaw(context, document, &subject).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = thawed {
        let text = format!(
            "{failure}; look whether applications in the guest still wait, and run the post-thaw \
             script there by hand"
        );
        context.say(Severity::Error, None, &text);
    }
    match document.is_guest_frozen {
        true => note(context, document, Event::GuestThawed).await,
        false => Ok(()),
    }
}

/// After a committed point, once: a run that is interrupted in it does not repeat it.
pub(super) async fn after_success<S: Site>(
    context: &Context<'_, S>,
    document: &mut RunDocument,
) -> Result<(), Failure> {
    let Some(steps) = context.guest.filter(|steps| steps.after_success.is_some()) else {
        return Ok(());
    };
    let RunState::Clearing { outcome: Outcome::Point(_) } = &document.state else { return Ok(()) };
    if document.is_success_told {
        return Ok(());
    }
    note(context, document, Event::TellSuccess).await?;
    let ended = match super::prepare::subject(context, &document.vm, 0) {
        Ok(subject) => run(context, steps, Step::AfterSuccess, &subject).await,
        Err(failure) => Ended::Badly(failure.to_string()),
    };
    if let Ended::Badly(why) | Ended::Unreached(why) = ended {
        // The point is there: that cannot fail any more.
        context.warn(None, &format!("the after-success script: {why}"));
    }
    Ok(())
}

fn judge<S: Site>(
    context: &Context<'_, S>,
    steps: &GuestSteps,
    step: Step,
    ended: Ended,
) -> Result<(), Failure> {
    let why = match ended {
        Ended::Well => None,
        Ended::Badly(why) | Ended::Unreached(why) => {
            Some(format!("the {} script: {why}", step.name()))
        }
    };
    match steps.on_failure.judge(why.as_deref()) {
        PolicyOutcome::Go => Ok(()),
        PolicyOutcome::Warn(why) => {
            context.warn(None, &format!("{why}; the backup goes on, as the job asks"));
            Ok(())
        }
        PolicyOutcome::Stop(why) => Err(failed(FailureKind::Source, why)),
    }
}

async fn run<S: Site>(
    context: &Context<'_, S>,
    steps: &GuestSteps,
    step: Step,
    subject: &Subject,
) -> Ended {
    let Some(script) = step.script(steps) else { return Ended::Well };
    let vcenter = context.broker.vcenter();
    let config = match VmConfig::capture(vcenter, &subject.vm).await {
        Ok(config) => config,
        Err(error) => return Ended::Unreached(error.to_string()),
    };
    let family = Family::of_guest_id(&config.guest_id);
    let wanted = match script_run(steps, step, script, family) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => {
            let text = format!("no {} script for {}", step.name(), config.guest_name);
            context.info(None, &text);
            return Ended::Well;
        }
        Err(why) => return Ended::Badly(why),
    };
    // Only what is before the snapshot may be cut short: a guest is thawed whatever is wished.
    let (cancel, cancelled) = watch::channel(false);
    let mut wish = context.site.wish();
    let running = application::run(vcenter, &subject.vm, family, wanted, Some(cancelled));
    tokio::pin!(running);
    let mut may_cancel = step == Step::PreFreeze;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            _ = wish.wait_for(|wish| wish.not_to_begin().is_some()), if may_cancel => {
                may_cancel = false;
                cancel.send_replace(true);
            }
        }
    };
    match ended {
        Ok(end) => {
            end.remarks.iter().for_each(|remark| context.warn(None, remark));
            let output = crate::vcenter::soap::quoted(&end.output);
            let cut = if end.is_output_cut { " (cut)" } else { "" };
            let text = format!(
                "the {} script ended with exit code {}; it wrote: {output}{cut}",
                step.name(),
                end.exit_code
            );
            context.info(None, &text);
            end.failure().map_or(Ended::Well, Ended::Badly)
        }
        Err(application::ScriptError::Guest(error)) if error.is_retryable() => {
            Ended::Unreached(error.to_string())
        }
        Err(error) => Ended::Badly(error.to_string()),
    }
}

/// What is run in a guest of this family; nothing if the job has no text for it.
fn script_run(
    steps: &GuestSteps,
    step: Step,
    script: &GuestScript,
    family: Family,
) -> Result<Option<ScriptRun>, String> {
    let what = match &script.source {
        ScriptSource::Installed { path } => Script::Installed { path: path.clone() },
        ScriptSource::Upload { linux, windows } => {
            let (text, ending) = match family {
                Family::Posix => (linux, "sh"),
                Family::Windows => (windows, "cmd"),
            };
            let Some(text) = text else { return Ok(None) };
            let name = format!("{}.{ending}", step.name());
            Script::Upload { name, content: Bytes::copy_from_slice(text.as_bytes()) }
        }
    };
    let arguments = words(&script.arguments)?;
    let timeout = match script.timeout_seconds {
        0 => limits::SCRIPT_SECONDS,
        seconds => u64::from(seconds),
    };
    let timeout = Duration::from_secs(timeout);
    Ok(Some(ScriptRun { arguments, timeout, ..ScriptRun::new(what, steps.login.clone()?) }))
}

/// Splits arguments at blanks; what stands between double quotes stays together.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    for c in text.chars() {
        match c {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !is_quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match is_quoted {
        true => Err("the arguments have a double quote without its second".to_owned()),
        false => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestSteps, OnFailure, Step, script_run, words};
    use crate::application::{Family, Script};
    use crate::vcenter::Secret;
    use crate::vcenter::guest::GuestLogin;
    use gantry_database::model::{GuestScript, ScriptSource};

    #[test]
    fn arguments_are_words() {
        assert_eq!(words("a  \"b c\" d\"e f\"").unwrap(), ["a", "b c", "de f"]);
        assert_eq!(words("  \"\" ").unwrap(), [""]);
        assert!(words("\"a").is_err());
        assert!(words("").unwrap().is_empty());
    }

    #[test]
    fn a_guest_gets_the_text_of_its_family_or_none() {
        let script = GuestScript {
            source: ScriptSource::Upload { linux: Some("sync".into()), windows: None },
            arguments: "now".into(),
            timeout_seconds: 7,
        };
        let mut steps = GuestSteps {
            on_failure: OnFailure::Fail,
            login: Ok(GuestLogin { user: "u".into(), password: Secret::new("p") }),
            pre_freeze: Some(script.clone()),
            post_thaw: None,
            after_success: None,
        };
        let run = script_run(&steps, Step::PreFreeze, &script, Family::Posix).unwrap().unwrap();
        assert!(matches!(&run.script, Script::Upload { name, .. } if name == "pre-freeze.sh"));
        assert_eq!((run.timeout.as_secs(), run.arguments), (7, vec!["now".to_owned()]));
        assert!(script_run(&steps, Step::PreFreeze, &script, Family::Windows).unwrap().is_none());
        steps.login = Err("there is no credential".into());
        assert!(script_run(&steps, Step::PreFreeze, &script, Family::Posix).is_err());
    }
}
