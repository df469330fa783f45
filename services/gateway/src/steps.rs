//! Work of several steps that is done whole or not at all.
//!
//! A step knows how it is done and how it is undone, and undoing it needs only
//! the container's id and succeeds where nothing was done: "delete what is not
//! there" is a success in every service. So the intent that must be on disk
//! before the first step is one word, the container's state (see
//! [`crate::state`]): after a crash at any point [`crate::reconcile`] undoes all
//! steps of the plan that the word names, done or not.
//!
//! Steps of one stage run at the same time; stages run one after another. When
//! a step fails, the others of its stage come to their end, and all steps begun
//! so far are undone, the failed one too (a call that was cut off may have had
//! its effect), in reverse order, past failures, each of which is reported.

use futures::future::{BoxFuture, join_all};

use crate::error::Error;

/// One step.
pub trait Step: Sync {
    /// "network.endpoint".
    fn name(&self) -> &'static str;

    fn act(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Takes back what [`Step::act`] did, or may have done, or did not do.
    fn undo(&self) -> BoxFuture<'_, Result<(), Error>>;
}

/// A plan that failed and was undone.
#[derive(Debug)]
pub struct Failed {
    /// The step that failed, and why.
    pub step: &'static str,
    pub error: Error,
    /// Steps that could not be undone, and why.
    pub left: Vec<(&'static str, Error)>,
}

/// Does all stages, or undoes what was done of them.
///
/// # Errors
/// A step failed.
pub async fn perform(stages: &[&[&dyn Step]]) -> Result<(), Failed> {
    for (done, stage) in stages.iter().enumerate() {
        let outcomes = join_all(stage.iter().map(|step| step.act())).await;
        let failure = stage
            .iter()
            .zip(outcomes)
            .find_map(|(step, outcome)| Some((step.name(), outcome.err()?)));
        if let Some((step, error)) = failure {
            let left = undo(&stages[..=done]).await;
            return Err(Failed { step, error, left });
        }
    }
    Ok(())
}

/// Undoes all stages, the last first, past failures; returns these.
pub async fn undo(stages: &[&[&dyn Step]]) -> Vec<(&'static str, Error)> {
    let mut left = Vec::new();
    for stage in stages.iter().rev() {
        let outcomes = join_all(stage.iter().map(|step| step.undo())).await;
        for (step, outcome) in stage.iter().zip(outcomes) {
            if let Err(error) = outcome {
                tracing::warn!(step = step.name(), error = %error, "a step could not be undone");
                left.push((step.name(), error));
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Writes down what is asked of it; fails where it is told to.
    struct Noted<'a> {
        name: &'static str,
        fails: bool,
        undo_fails: bool,
        notes: &'a Mutex<Vec<String>>,
    }

    fn error() -> Error {
        Error::invalid("step", "told to fail")
    }

    impl Step for Noted<'_> {
        fn name(&self) -> &'static str {
            self.name
        }

        fn act(&self) -> BoxFuture<'_, Result<(), Error>> {
            Box::pin(async {
                self.notes.lock().unwrap().push(format!("do {}", self.name));
                if self.fails { Err(error()) } else { Ok(()) }
            })
        }

        fn undo(&self) -> BoxFuture<'_, Result<(), Error>> {
            Box::pin(async {
                self.notes
                    .lock()
                    .unwrap()
                    .push(format!("undo {}", self.name));
                if self.undo_fails {
                    Err(error())
                } else {
                    Ok(())
                }
            })
        }
    }

    /// Runs a ‖ b, then c, then d, with one step failing, and all undoing
    /// failing where `undo_fails`.
    async fn run(failing: &str, undo_fails: bool) -> (Vec<String>, Result<(), Failed>) {
        let notes = Mutex::new(Vec::new());
        let step = |name| Noted {
            name,
            fails: name == failing,
            undo_fails,
            notes: &notes,
        };
        let (a, b, c, d) = (step("a"), step("b"), step("c"), step("d"));
        let outcome = perform(&[&[&a, &b], &[&c], &[&d]]).await;
        let notes = notes.into_inner().unwrap();
        (notes, outcome)
    }

    #[tokio::test]
    async fn all_steps_are_done_in_order() {
        let (notes, outcome) = run("none", false).await;
        outcome.unwrap();
        assert_eq!(notes, ["do a", "do b", "do c", "do d"]);
    }

    #[tokio::test]
    async fn whichever_step_fails_all_that_were_begun_are_undone() {
        for (failing, begun) in [("a", "ab"), ("b", "ab"), ("c", "abc"), ("d", "abcd")] {
            let (notes, outcome) = run(failing, false).await;
            let failed = outcome.unwrap_err();
            assert_eq!(failed.step, failing);
            assert!(failed.left.is_empty());
            for step in ["a", "b", "c", "d"] {
                let was_begun = begun.contains(step);
                assert_eq!(notes.contains(&format!("do {step}")), was_begun);
                assert_eq!(notes.contains(&format!("undo {step}")), was_begun);
            }
            let last = notes.iter().position(|note| note.starts_with("undo"));
            let first = &notes[last.unwrap()];
            assert!(begun.ends_with(&first[5..]) || begun == "ab", "{notes:?}");
        }
    }

    #[tokio::test]
    async fn undoing_goes_on_past_a_step_that_cannot_be_undone() {
        let (notes, outcome) = run("d", true).await;
        let left = outcome.unwrap_err().left;
        assert_eq!(left.len(), 4);
        assert_eq!(notes.len(), 8);
    }
}
