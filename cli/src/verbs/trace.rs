//! `gantry trace`: which step of a container's last start took how long.

use clap::Args;
use gantry_proto::gateway::v1::InspectRequest;
use gantry_proto::types::v1::Step;

use crate::exit::Failure;
use crate::session::Session;
use crate::{table, terminal};

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Container
    container: String,
}

impl Trace {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let request = InspectRequest {
            container: self.container.clone(),
            size: false,
        };
        let steps = session
            .engine
            .containers()
            .inspect(request)
            .await?
            .into_inner()
            .container
            .unwrap_or_default()
            .steps;
        if steps.is_empty() {
            return Err(Failure::new(format!(
                "container {} has never been started",
                self.container
            )));
        }
        terminal::print(&shown(steps))?;
        Ok(0)
    }
}

/// In the order of their beginning, from the first one on.
fn shown(mut steps: Vec<Step>) -> String {
    steps.sort_by_key(|step| step.start_unix_nanos);
    let first = steps.first().map_or(0, |step| step.start_unix_nanos);
    let last = steps
        .iter()
        .map(|step| step.start_unix_nanos + step.duration_nanos)
        .max()
        .unwrap_or(first);
    let mut rows = vec![["STEP", "AT", "TOOK"].map(str::to_owned).to_vec()];
    rows.extend(steps.iter().map(|step| {
        vec![
            step.name.clone(),
            millis(step.start_unix_nanos - first),
            millis(step.duration_nanos),
        ]
    }));
    rows.push(vec!["all".to_owned(), millis(0), millis(last - first)]);
    table::lines(&rows)
}

fn millis(nanos: i64) -> String {
    format!("{:.2} ms", nanos as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_the_order_of_their_beginning() {
        let step = |name: &str, start, duration| Step {
            name: name.to_owned(),
            start_unix_nanos: start,
            duration_nanos: duration,
        };
        let text = shown(vec![
            step("shim.clone", 3_000_000, 1_500_000),
            step("image.prepare", 1_000_000, 2_000_000),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "image.prepare   0.00 ms   2.00 ms");
        assert_eq!(lines[2], "shim.clone      2.00 ms   1.50 ms");
        assert_eq!(lines[3], "all             0.00 ms   3.50 ms");
    }
}
