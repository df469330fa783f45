//! `gantry logs`: what a container has written.

use std::io;

use clap::Args;
use gantry_proto::gateway::v1::LogsRequest;
use gantry_proto::runtime::v1::LogEntry;
use gantry_proto::types::v1::Stream;

use crate::display;
use crate::exit::Failure;
use crate::parse::{ParseError, Parsed, times};
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on with what it writes from now on
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the last lines, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail, allow_hyphen_values = true)]
    tail: Tail,
    /// Only from this time on: 10m, 2006-01-02T15:04:05Z
    #[arg(long, value_name = "TIME", value_parser = times::point)]
    since: Option<prost_types::Timestamp>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = times::point)]
    until: Option<prost_types::Timestamp>,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Show what else is known of each line: nothing, in this log's format
    #[arg(long)]
    details: bool,
    /// Container
    container: String,
}

/// How many of the last lines.
#[derive(Clone, Copy, Debug)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Parsed<Tail> {
    match text {
        "all" | "-1" => Ok(Tail(None)),
        _ => text.parse().map(|count| Tail(Some(count))).map_err(|_| {
            ParseError::new(format!(
                "{text:?} is not a number of lines; say a number or all"
            ))
        }),
    }
}

impl Logs {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let request = LogsRequest {
            container: self.container,
            follow: self.follow,
            since: self.since,
            until: self.until,
            tail: self.tail.0,
            stdout: true,
            stderr: true,
        };
        let mut answers = session
            .engine
            .containers()
            .logs(request)
            .await?
            .into_inner();
        let mut lines = Lines::new(self.timestamps, self.details);
        while let Some(answer) = answers.message().await? {
            for entry in answer.entries {
                lines.write(&entry).await?;
            }
            lines.flush().await?;
        }
        Ok(0)
    }
}

/// Puts entries out, collected as long as they go to the same stream.
struct Lines {
    timestamps: bool,
    details: bool,
    buffer: Vec<u8>,
    stream: Stream,
    /// The entry before was only a part of its line.
    unfinished: [bool; 2],
}

impl Lines {
    fn new(timestamps: bool, details: bool) -> Self {
        Self {
            timestamps,
            details,
            buffer: Vec::new(),
            stream: Stream::Stdout,
            unfinished: [false; 2],
        }
    }

    async fn write(&mut self, entry: &LogEntry) -> io::Result<()> {
        let stream = match entry.stream() {
            Stream::Stderr => Stream::Stderr,
            Stream::Stdout | Stream::Unspecified => Stream::Stdout,
        };
        if stream != self.stream {
            self.flush().await?;
            self.stream = stream;
        }
        let unfinished = &mut self.unfinished[usize::from(stream == Stream::Stderr)];
        if self.timestamps && !*unfinished {
            let time = entry.time.unwrap_or_default();
            self.buffer
                .extend_from_slice(display::rfc3339_nanos(&time).as_bytes());
            self.buffer.push(b' ');
        }
        if self.details && !*unfinished {
            // As Docker shows a line without any.
            self.buffer.push(b' ');
        }
        self.buffer.extend_from_slice(&entry.data);
        *unfinished = !entry.data.ends_with(b"\n");
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        terminal::write(self.stream, std::mem::take(&mut self.buffer)).await
    }
}
