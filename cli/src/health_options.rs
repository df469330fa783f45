//! The options of `run` and `create` that say how it is found out whether a
//! container is well.

use clap::Args;
use gantry_kit::times;
use gantry_proto::gateway::v1::HealthCheck;

use crate::parse::{ParseError, Parsed};

#[derive(Debug, Args)]
pub(crate) struct HealthOptions {
    /// Command that finds out whether it is well
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks (30s)
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_interval: Option<i64>,
    /// Failures in a row that make it unhealthy (3)
    #[arg(long, value_name = "COUNT")]
    health_retries: Option<i32>,
    /// Time from the start in which failures do not count (0s)
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_start_period: Option<i64>,
    /// Time between two checks in the start period (5s)
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_start_interval: Option<i64>,
    /// Time after which a check has failed (30s)
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_timeout: Option<i64>,
    /// Leave out the image's check
    #[arg(long)]
    no_healthcheck: bool,
    /// What to do when it is found unhealthy: none, restart, stop, kill
    #[arg(long, alias = "health-on-failure", value_name = "ACTION", value_parser = ["none", "restart", "stop", "kill"])]
    on_unhealthy: Option<String>,
}

/// A duration, in nanoseconds.
fn nanos(text: &str) -> Parsed<i64> {
    // Docker takes 0 for: not given.
    if text == "0" {
        return Ok(0);
    }
    let duration = times::duration(text).map_err(|error| ParseError::new(error.to_string()))?;
    i64::try_from(duration.as_nanos()).map_err(|_| ParseError::new(format!("{text} is too long")))
}

impl HealthOptions {
    pub(crate) fn check(&self) -> Parsed<Option<HealthCheck>> {
        let named = self.health_cmd.is_some()
            || self.health_interval.is_some()
            || self.health_retries.is_some()
            || self.health_start_period.is_some()
            || self.health_start_interval.is_some()
            || self.health_timeout.is_some();
        if self.no_healthcheck {
            if named {
                return Err(ParseError::new(
                    "--no-healthcheck conflicts with --health-* options: give one or the other",
                ));
            }
            return Ok(Some(HealthCheck {
                test: vec!["NONE".to_owned()],
                ..HealthCheck::default()
            }));
        }
        if !named {
            return Ok(None);
        }
        let test = match self.health_cmd.as_deref() {
            None | Some("") => Vec::new(),
            Some("none") => vec!["NONE".to_owned()],
            Some(script) => vec!["CMD-SHELL".to_owned(), script.to_owned()],
        };
        Ok(Some(HealthCheck {
            test,
            interval_nanos: self.health_interval.unwrap_or_default(),
            timeout_nanos: self.health_timeout.unwrap_or_default(),
            start_period_nanos: self.health_start_period.unwrap_or_default(),
            start_interval_nanos: self.health_start_interval.unwrap_or_default(),
            retries: self.health_retries.unwrap_or_default(),
        }))
    }

    pub(crate) fn on_unhealthy(&self) -> String {
        self.on_unhealthy.clone().unwrap_or_default()
    }
}
