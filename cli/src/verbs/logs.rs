//! `gantry logs`: what a container has written.

use std::io;

use clap::Args;
use gantry_proto::gateway::v1::LogsRequest;
use gantry_proto::runtime::v1::{LogEntry, LogGap};
use gantry_proto::types::v1::Stream;

use crate::display;
use crate::exit::{Failure, INCOMPLETE};
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
        Ok(lines.code())
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
    /// Something is missing in what was put out.
    incomplete: bool,
}

impl Lines {
    fn new(timestamps: bool, details: bool) -> Self {
        Self {
            timestamps,
            details,
            buffer: Vec::new(),
            stream: Stream::Stdout,
            unfinished: [false; 2],
            incomplete: false,
        }
    }

    fn code(&self) -> u8 {
        if self.incomplete { INCOMPLETE } else { 0 }
    }

    /// Says that output is missing here.
    async fn gap(&mut self, gap: &LogGap) -> io::Result<()> {
        self.flush().await?;
        self.incomplete = true;
        let what = match (gap.lines, gap.bytes) {
            (0, _) => "some lines are missing here".to_owned(),
            (lines, 0) => format!("{lines} lines are missing here"),
            (lines, bytes) => format!("{lines} lines ({bytes} bytes) are missing here"),
        };
        let line = format!("gantry: {what}: {}\n", gap.reason);
        terminal::write(Stream::Stderr, line.into_bytes()).await
    }

    async fn write(&mut self, entry: &LogEntry) -> io::Result<()> {
        if let Some(gap) = &entry.gap {
            return self.gap(gap).await;
        }
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
