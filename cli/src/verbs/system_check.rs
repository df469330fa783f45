//! `gantry system check`: compares what is on the disk with what it should be.

use clap::Args;
use gantry_proto::gateway::v1 as gateway;
use gantry_proto::image::v1::check_response::Event;
use gantry_proto::image::v1::{CheckDone, CheckRequest, Finding};

use crate::display;
use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct SystemCheck {
    /// Unpack damaged layers again, fetch damaged content again, rebuild the
    /// index, and remove what belongs to no container and no image
    #[arg(long)]
    repair: bool,
    /// Only what is wrong
    #[arg(short, long)]
    quiet: bool,
}

impl SystemCheck {
    /// The code is 1 where something is wrong and was not put right.
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let request = CheckRequest {
            repair: self.repair,
        };
        // Containers first: what belongs to none of them is not checked then.
        let containers = session
            .engine
            .system()
            .check(gateway::CheckRequest {
                repair: self.repair,
            })
            .await?
            .into_inner();
        for finding in &containers.findings {
            terminal::print(&text(finding))?;
        }
        let mut events = session.engine.store().check(request).await?.into_inner();
        let mut done = None;
        while let Some(message) = events.message().await? {
            match message.event {
                Some(Event::Finding(finding)) => terminal::print(&text(&finding))?,
                Some(Event::Done(last)) => done = Some(last),
                Some(Event::Progress(_)) | None => {}
            }
        }
        let Some(mut done) = done else {
            return Err(Failure::new("the check ended before it was done"));
        };
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let repaired = containers.findings.iter();
        let repaired = repaired.filter(|finding| !finding.repaired.is_empty());
        done.objects += containers.objects;
        done.repaired += count(repaired.count());
        done.findings += count(containers.findings.len());
        if !self.quiet {
            terminal::println(&summary(&done, self.repair))?;
        }
        Ok(u8::from(done.repaired < done.findings))
    }
}

fn text(finding: &Finding) -> String {
    let mut text = format!("{}: {}", finding.object, finding.problem);
    if !finding.needed_by.is_empty() {
        text.push_str(&format!(" (needed by {})", finding.needed_by.join(", ")));
    }
    let mut text = display::escaped(&text);
    text.push('\n');
    if !finding.repaired.is_empty() {
        text.push_str(&format!(
            "  repaired: {}\n",
            display::escaped(&finding.repaired)
        ));
    }
    text
}

fn summary(done: &CheckDone, repair: bool) -> String {
    let plural = |count: u64, word: &str| match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    let checked = format!(
        "Checked {}, {}:",
        plural(done.objects, "object"),
        display::exact_size(done.bytes)
    );
    match (done.findings, done.findings - done.repaired) {
        (0, _) => format!("{checked} no problem found"),
        (found, 0) => format!("{checked} {}, all repaired", plural(found, "problem")),
        (found, left) if repair => {
            format!(
                "{checked} {}, {left} not repaired",
                plural(found, "problem")
            )
        }
        (found, _) => format!(
            "{checked} {}; `gantry system check --repair` puts right what can be",
            plural(found, "problem")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_is_left_to_do() {
        let done = |findings, repaired| CheckDone {
            objects: 1,
            bytes: 2000,
            findings,
            repaired,
            finished: None,
        };
        for (findings, repaired, repair, said) in [
            (0, 0, false, "Checked 1 object, 2kB: no problem found"),
            (
                2,
                2,
                true,
                "Checked 1 object, 2kB: 2 problems, all repaired",
            ),
            (
                2,
                1,
                true,
                "Checked 1 object, 2kB: 2 problems, 1 not repaired",
            ),
            (
                1,
                0,
                false,
                "Checked 1 object, 2kB: 1 problem; `gantry system check --repair` puts right what can be",
            ),
        ] {
            assert_eq!(summary(&done(findings, repaired), repair), said);
        }
    }

    #[test]
    fn a_finding_names_what_is_wrong_who_needs_it_and_what_was_done() {
        let finding = Finding {
            object: "layer sha256:ab".to_owned(),
            problem: "etc/passwd has another content".to_owned(),
            repaired: "unpacked again".to_owned(),
            needed_by: vec!["debian:12".to_owned(), "web".to_owned()],
        };
        assert_eq!(
            text(&finding),
            "layer sha256:ab: etc/passwd has another content (needed by debian:12, web)\n  repaired: unpacked again\n"
        );
    }
}
