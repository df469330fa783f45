//! `gantry stats`: what containers use.

use std::io;
use std::time::Duration;

use clap::Args;
use futures::future::join_all;
use gantry_proto::gateway::v1::{InspectRequest, ListRequest, StatsRequest, StatsResponse};
use gantry_proto::shim::v1::StatsResponse as Usage;
use serde_json::{Value, json};

use crate::display;
use crate::exit::Failure;
use crate::format::Format;
use crate::lists;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

const HEADINGS: [(&str, &str); 12] = [
    ("ID", "CONTAINER ID"),
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
    ("CPUPressure", "CPU PRESSURE"),
    ("MemPressure", "MEM PRESSURE"),
    ("IOPressure", "I/O PRESSURE"),
];

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Clears the screen and goes to its top left corner (ECMA-48).
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Also containers that do not run
    #[arg(short, long)]
    all: bool,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// Cut nothing
    #[arg(long)]
    no_trunc: bool,
    /// table, json, or a template
    #[arg(long)]
    format: Option<String>,
    /// Containers; all that run where none is named
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Stats {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let mut before = self.look(session).await?;
        loop {
            // CPU is a difference: there is none to see before a second look.
            tokio::time::sleep(PERIOD).await;
            let now = self.look(session).await?;
            let rows: Vec<Value> = now.iter().map(|stats| self.row(stats, &before)).collect();
            let text = format
                .rows(&rows, TABLE, &HEADINGS)
                .map_err(|e| Failure::of(&e))?;
            if self.no_stream {
                terminal::print(&text)?;
                return Ok(0);
            }
            if matches!(format, Format::Table | Format::Columns(_))
                && io::IsTerminal::is_terminal(&io::stdout())
            {
                terminal::print(CLEAR)?;
            }
            terminal::print(&text)?;
            before = now;
        }
    }

    /// What containers use; nothing of one that does not run.
    async fn look(&self, session: &Session) -> Result<Vec<StatsResponse>, Failure> {
        let named = !self.containers.is_empty();
        let containers = if named {
            self.containers.clone()
        } else {
            let request = ListRequest {
                all: self.all,
                ..ListRequest::default()
            };
            let listed = lists::containers(session.engine.containers(), request).await?;
            listed.into_iter().map(|container| container.id).collect()
        };
        let calls = containers.into_iter().map(|container| {
            let mut client = session.engine.containers();
            async move {
                let request = StatsRequest {
                    container: container.clone(),
                };
                (container, client.stats(request).await)
            }
        });
        let mut all = Vec::new();
        for (container, answer) in join_all(calls).await {
            match answer.map_err(Failure::from) {
                Ok(stats) => all.push(stats.into_inner()),
                Err(failure) if failure.is("WRONG_STATE") && (named || self.all) => {
                    all.push(self.at_rest(session, container).await?);
                }
                Err(failure) if named => return Err(failure),
                // It ended since it was listed.
                Err(_) => {}
            }
        }
        Ok(all)
    }

    /// What a container uses that does not run: nothing.
    async fn at_rest(
        &self,
        session: &Session,
        container: String,
    ) -> Result<StatsResponse, Failure> {
        let request = InspectRequest {
            container,
            size: false,
        };
        let answer = session.engine.containers().inspect(request).await?;
        let detail = answer.into_inner().container.unwrap_or_default();
        let summary = detail.summary.unwrap_or_default();
        Ok(StatsResponse {
            container_id: summary.id,
            name: summary.name,
            stats: None,
        })
    }

    fn row(&self, now: &StatsResponse, before: &[StatsResponse]) -> Value {
        let id = if self.no_trunc {
            now.container_id.clone()
        } else {
            display::short_id(&now.container_id)
        };
        let usage = now.stats.unwrap_or_default();
        let earlier = before
            .iter()
            .find(|stats| stats.container_id == now.container_id)
            .and_then(|stats| stats.stats);
        let limit = match usage.memory_limit_bytes {
            0 if now.stats.is_none() => 0,
            0 => host_memory(),
            limit => limit,
        };
        let share = match limit {
            0 => 0.0,
            limit => usage.memory_bytes as f64 / limit as f64 * 100.0,
        };
        json!({
            "ID": id,
            "Container": id,
            "Name": now.name,
            "CPUPerc": format!("{:.2}%", cpu(&usage, earlier.as_ref())),
            "MemUsage": format!(
                "{} / {}",
                display::binary_size(usage.memory_bytes),
                display::binary_size(limit)
            ),
            "MemPerc": format!("{share:.2}%"),
            "NetIO": format!(
                "{} / {}",
                display::size(usage.network_rx_bytes),
                display::size(usage.network_tx_bytes)
            ),
            "BlockIO": format!(
                "{} / {}",
                display::size(usage.block_read_bytes),
                display::size(usage.block_write_bytes)
            ),
            "PIDs": usage.pids.to_string(),
            "CPUPressure": pressure(usage.cpu_pressure),
            "MemPressure": pressure(usage.memory_pressure),
            "IOPressure": pressure(usage.io_pressure),
        })
    }
}

/// How much of the last ten seconds something waited.
fn pressure(hundredths: Option<u32>) -> String {
    match hundredths {
        Some(hundredths) => format!("{}.{:02}%", hundredths / 100, hundredths % 100),
        None => "--".to_owned(),
    }
}

/// Percent of one CPU between two looks.
fn cpu(now: &Usage, before: Option<&Usage>) -> f64 {
    let nanos = |usage: &Usage| {
        usage.read_at.map_or(0, |time| {
            time.seconds * 1_000_000_000 + i64::from(time.nanos)
        })
    };
    let Some(before) = before else {
        return 0.0;
    };
    let time = nanos(now) - nanos(before);
    if time <= 0 {
        return 0.0;
    }
    now.cpu_nanos.saturating_sub(before.cpu_nanos) as f64 / time as f64 * 100.0
}

/// What a container without a limit may use: all.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    #[expect(
        clippy::useless_conversion,
        reason = "the width differs between targets"
    )]
    let total = u64::from(info.totalram);
    total * u64::from(info.mem_unit)
}
