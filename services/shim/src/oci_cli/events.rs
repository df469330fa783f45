//! `events`.

use std::time::Duration;

use serde_json::json;

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::{output, store};
use crate::container::{Container, Status};

/// `events [--stats] [--interval 5s] ID`: the counters, once or again and again until the container ends.
pub(super) fn events(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let mut once = false;
    let mut interval = Duration::from_secs(5);
    while let Some(flag) = words.flag() {
        match flag.name.as_str() {
            "stats" => once = flag.is_on(),
            "interval" => {
                let text = words.value(&flag)?;
                interval = duration(&text).ok_or_else(|| {
                    CliError::usage(format!(
                        "--interval {text:?} is not a duration as 5s or 500ms"
                    ))
                })?;
            }
            _ => return Err(flag.unknown("events")),
        }
    }
    let id = words.required("the container's id")?;
    words.end()?;
    let (_, container) = store::open(globals, &id)?;
    if container.status()? == Status::Stopped {
        return Err(CliError::State {
            id,
            verb: "watch",
            why: "it is stopped".to_owned(),
        });
    }
    if once {
        return output::print(&stats(&container)?);
    }
    let mut ooms = container.oom_kills()?;
    loop {
        if container.wait(interval) {
            return Ok(0);
        }
        let now = container.oom_kills()?;
        if now > ooms {
            ooms = now;
            output::print(&json!({"type": "oom", "id": container.id()}).to_string())?;
        }
        output::print(&stats(&container)?)?;
    }
}

/// As runc writes it.
fn stats(container: &Container) -> Result<String, CliError> {
    let stats = container.stats()?;
    Ok(json!({
        "type": "stats",
        "id": container.id(),
        "data": {
            "cpu": {
                "usage": {
                    "total": stats.cpu.usage_ns,
                    "percpu": stats.cpu.per_cpu_ns,
                    "kernel": stats.cpu.system_ns,
                    "user": stats.cpu.user_ns,
                },
                "throttling": {
                    "periods": stats.cpu.periods,
                    "throttledPeriods": stats.cpu.throttled_periods,
                    "throttledTime": stats.cpu.throttled_ns,
                },
            },
            "memory": {
                "cache": stats.memory.file,
                "usage": {
                    "limit": stats.memory.limit.unwrap_or(u64::MAX),
                    "usage": stats.memory.usage,
                    "max": stats.memory.peak,
                    "failcnt": stats.memory.failures,
                },
            },
            "pids": {
                "current": stats.pids.current,
                "limit": stats.pids.limit.unwrap_or(0),
            },
            "blkio": {
                "ioServiceBytesRecursive": [
                    {"op": "Read", "value": stats.block.read_bytes},
                    {"op": "Write", "value": stats.block.write_bytes},
                ],
            },
        },
    })
    .to_string())
}

fn duration(text: &str) -> Option<Duration> {
    if let Some(number) = text.strip_suffix("ms") {
        return number.parse().ok().map(Duration::from_millis);
    }
    if let Some(number) = text.strip_suffix('s') {
        return number
            .parse::<f64>()
            .ok()
            .filter(|n| *n > 0.0)
            .map(Duration::from_secs_f64);
    }
    text.strip_suffix('m')?
        .parse::<u64>()
        .ok()
        .map(|minutes| Duration::from_secs(minutes * 60))
}
