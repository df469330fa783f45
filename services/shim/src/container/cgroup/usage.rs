//! Counters: what a group uses, and how often memory was wanting.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};

use super::{Cgroup, read, write};
use crate::container::context::During;
use crate::container::error::Result;
use crate::container::stats::{BlockStats, CpuStats, MemoryStats, PidsStats, PressureStats, Stats};

/// Of a "key value" file.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

/// A file with one number; "max", and v1's nearly 2^63, are no limit.
fn number(directory: &Path, file: &str) -> Option<u64> {
    let value = read(&directory.join(file)).ok()?.trim().parse().ok()?;
    (value < i64::MAX as u64 / 2).then_some(value)
}

/// "some avg10=1.25 …" in hundredths of a percent.
fn pressure(file: &Path) -> Option<u32> {
    average(&read(file).ok()?)
}

fn average(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some
        .split(' ')
        .find_map(|part| part.strip_prefix("avg10="))?;
    let (whole, hundredths) = average.split_once('.')?;
    Some(whole.parse::<u32>().ok()? * 100 + hundredths.parse::<u32>().ok()?)
}

impl Cgroup {
    /// Everything. What can not be read is zero.
    pub(in crate::container) fn stats(&self) -> Result<Stats> {
        let mut stats = if self.layout.is_v2() {
            self.unified_directory()
                .map(|directory| v2(&directory))
                .unwrap_or_default()
        } else {
            self.v1()
        };
        stats.oom_kills = self.oom_kills();
        // Beside v1's hierarchies, too, where that of v2 is there without controllers.
        if let Some(directory) = self.unified_directory() {
            stats.pressure = PressureStats {
                cpu: pressure(&directory.join("cpu.pressure")),
                memory: pressure(&directory.join("memory.pressure")),
                io: pressure(&directory.join("io.pressure")),
            };
        }
        Ok(stats)
    }

    /// Processes killed for want of memory.
    pub(in crate::container) fn oom_kills(&self) -> u64 {
        let file = if self.layout.is_v2() {
            self.unified_directory()
                .map(|directory| directory.join("memory.events"))
        } else {
            self.v1_directory("memory")
                .map(|directory| directory.join("memory.oom_control"))
        };
        file.and_then(|file| read(&file).ok())
            .and_then(|text| field(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// Something to wait on for that; see [`Container::oom_watch`](crate::container::Container::oom_watch).
    pub(in crate::container) fn oom_watch(&self) -> Result<Option<OwnedFd>> {
        if self.layout.is_v2() {
            let Some(directory) = self.unified_directory() else {
                return Ok(None);
            };
            return match File::open(directory.join("memory.events")) {
                Ok(file) => Ok(Some(file.into())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error).during("watch memory of", directory.display()),
            };
        }
        let Some(directory) = self.v1_directory("memory") else {
            return Ok(None);
        };
        let watched = (|| -> io::Result<OwnedFd> {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let control = File::open(directory.join("memory.oom_control"))?;
            write(
                &directory.join("cgroup.event_control"),
                &format!("{} {}", event.as_raw_fd(), control.as_raw_fd()),
            )?;
            Ok(event)
        })();
        watched
            .map(Some)
            .during("watch memory of", directory.display())
    }

    fn v1(&self) -> Stats {
        let mut stats = Stats::default();
        if let Some(directory) = self.v1_directory("cpuacct") {
            stats.cpu.usage_ns = number(&directory, "cpuacct.usage").unwrap_or(0);
            // In clock ticks.
            let tick = 1_000_000_000 / gantry_sys::process::clock_ticks();
            let text = read(&directory.join("cpuacct.stat")).unwrap_or_default();
            stats.cpu.user_ns = field(&text, "user").unwrap_or(0) * tick;
            stats.cpu.system_ns = field(&text, "system").unwrap_or(0) * tick;
            stats.cpu.per_cpu_ns = read(&directory.join("cpuacct.usage_percpu"))
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|value| value.parse().ok())
                .collect();
        }
        if let Some(directory) = self.v1_directory("cpu") {
            let text = read(&directory.join("cpu.stat")).unwrap_or_default();
            stats.cpu.periods = field(&text, "nr_periods").unwrap_or(0);
            stats.cpu.throttled_periods = field(&text, "nr_throttled").unwrap_or(0);
            stats.cpu.throttled_ns = field(&text, "throttled_time").unwrap_or(0);
        }
        if let Some(directory) = self.v1_directory("memory") {
            let text = read(&directory.join("memory.stat")).unwrap_or_default();
            stats.memory = MemoryStats {
                usage: number(&directory, "memory.usage_in_bytes").unwrap_or(0),
                peak: number(&directory, "memory.max_usage_in_bytes").unwrap_or(0),
                limit: number(&directory, "memory.limit_in_bytes"),
                inactive_file: field(&text, "total_inactive_file").unwrap_or(0),
                anon: field(&text, "total_rss").unwrap_or(0),
                file: field(&text, "total_cache").unwrap_or(0),
                swap: field(&text, "total_swap").unwrap_or(0),
                failures: number(&directory, "memory.failcnt").unwrap_or(0),
            };
        }
        if let Some(directory) = self.v1_directory("pids") {
            stats.pids = pids(&directory);
        }
        if let Some(directory) = self.v1_directory("blkio") {
            let sum = |name: &str, operation: &str| {
                // "8:0 Read 4096"; the recursive file where there is one (BFQ), else the throttler's.
                ["blkio.bfq.", "blkio.throttle."]
                    .iter()
                    .filter_map(|prefix| {
                        read(&directory.join(format!("{prefix}{name}_recursive"))).ok()
                    })
                    .map(|text| {
                        text.lines()
                            .filter_map(|line| {
                                let mut words = line.split(' ').skip(1);
                                (words.next()? == operation)
                                    .then(|| words.next()?.parse::<u64>().ok())?
                            })
                            .sum::<u64>()
                    })
                    .max()
                    .unwrap_or(0)
            };
            stats.block = BlockStats {
                read_bytes: sum("io_service_bytes", "Read"),
                write_bytes: sum("io_service_bytes", "Write"),
                reads: sum("io_serviced", "Read"),
                writes: sum("io_serviced", "Write"),
            };
        }
        stats
    }
}

fn pids(directory: &Path) -> PidsStats {
    PidsStats {
        current: number(directory, "pids.current").unwrap_or(0),
        limit: number(directory, "pids.max"),
    }
}

fn v2(directory: &Path) -> Stats {
    let cpu = read(&directory.join("cpu.stat")).unwrap_or_default();
    let micro = |key: &str| field(&cpu, key).unwrap_or(0) * 1000;
    let memory = read(&directory.join("memory.stat")).unwrap_or_default();
    let events = read(&directory.join("memory.events")).unwrap_or_default();
    let mut block = BlockStats::default();
    for line in read(&directory.join("io.stat")).unwrap_or_default().lines() {
        for (key, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            let value: u64 = value.parse().unwrap_or(0);
            match key {
                "rbytes" => block.read_bytes += value,
                "wbytes" => block.write_bytes += value,
                "rios" => block.reads += value,
                "wios" => block.writes += value,
                _ => {}
            }
        }
    }
    Stats {
        cpu: CpuStats {
            usage_ns: micro("usage_usec"),
            user_ns: micro("user_usec"),
            system_ns: micro("system_usec"),
            per_cpu_ns: Vec::new(),
            periods: field(&cpu, "nr_periods").unwrap_or(0),
            throttled_periods: field(&cpu, "nr_throttled").unwrap_or(0),
            throttled_ns: micro("throttled_usec"),
        },
        memory: MemoryStats {
            usage: number(directory, "memory.current").unwrap_or(0),
            peak: number(directory, "memory.peak").unwrap_or(0),
            limit: number(directory, "memory.max"),
            inactive_file: field(&memory, "inactive_file").unwrap_or(0),
            anon: field(&memory, "anon").unwrap_or(0),
            file: field(&memory, "file").unwrap_or(0),
            swap: number(directory, "memory.swap.current").unwrap_or(0),
            failures: field(&events, "max").unwrap_or(0),
        },
        pids: pids(directory),
        block,
        oom_kills: 0,
        pressure: PressureStats::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_in_hundredths_of_a_percent() {
        let text = "some avg10=1.25 avg60=0.10 avg300=0.00 total=5\nfull avg10=9.00 avg60=0\n";
        assert_eq!(average(text), Some(125));
        assert_eq!(average("full avg10=9.00"), None);
        assert_eq!(average(""), None);
    }
}
