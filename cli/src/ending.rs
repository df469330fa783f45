//! How a container is asked to end, and when it is made to: what `stop` and
//! `restart` take.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Ending {
    /// Seconds until they are killed; -1 for never
    #[arg(
        short = 't',
        long = "timeout",
        alias = "time",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    pub(crate) timeout: Option<i32>,
    /// Signal in place of the container's own
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) signal: String,
}
