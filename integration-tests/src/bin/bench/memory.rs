//! Memory as PSS: what a process has for itself, and its share of what it
//! shares with its likes (proc(5), smaps_rollup).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gantry_integration_tests::audit;

use crate::contestant::Contestant;
use crate::statistics::Table;

const CONTAINERS: usize = 20;

pub(crate) fn services(contestants: &[Contestant], table: &mut Table) -> Result<()> {
    let mut row = Vec::new();
    for contestant in contestants {
        row.push(contestant.services()?.into_iter().map(pss).sum());
    }
    table.sizes("memory of all services, idle", &row);
    Ok(())
}

/// What each idle container costs besides its own processes.
pub(crate) fn idle_containers(
    contestants: &[Contestant],
    image: &str,
    table: &mut Table,
) -> Result<()> {
    let mut row = Vec::new();
    for contestant in contestants {
        let before: BTreeSet<i32> = keepers(contestant)?.into_iter().collect();
        let names: Vec<String> = (0..CONTAINERS).map(|n| format!("idle-{n}")).collect();
        for name in &names {
            contestant.run(&["run", "-d", "--name", name, image, "sleep", "3600"])?;
        }
        let end = Instant::now() + Duration::from_secs(10);
        let new = loop {
            let new: Vec<i32> = keepers(contestant)?
                .into_iter()
                .filter(|pid| !before.contains(pid))
                .collect();
            if new.len() == CONTAINERS || Instant::now() > end {
                break new;
            }
            // podman's conmon forks in its own time.
            std::thread::sleep(Duration::from_millis(50));
        };
        ensure!(
            new.len() == CONTAINERS,
            "{CONTAINERS} containers of {} have {} of {}",
            contestant.name(),
            new.len(),
            contestant.keeper()
        );
        let total: u64 = new.into_iter().map(pss).sum();
        row.push(total / CONTAINERS as u64);
        let mut words = vec!["rm", "-f"];
        words.extend(names.iter().map(String::as_str));
        contestant.run(&words)?;
    }
    table.sizes("memory per idle container (20)", &row);
    Ok(())
}

/// The most that any of the services had in memory so far.
pub(crate) fn peaks(contestants: &[Contestant], table: &mut Table) -> Result<()> {
    let mut row = Vec::new();
    for contestant in contestants {
        let peaks = contestant.services()?.into_iter().map(peak);
        row.push(peaks.max().unwrap_or(0));
    }
    table.sizes("peak memory of the service that pulls", &row);
    Ok(())
}

fn keepers(contestant: &Contestant) -> Result<Vec<i32>> {
    Ok(audit::all_processes()?
        .into_iter()
        .filter(|pid| {
            // Its file may be a copy or a view without a name: argv[0] has it.
            audit::command_of(*pid)
                .split(' ')
                .next()
                .is_some_and(|word| Path::new(word).ends_with(contestant.keeper()))
        })
        .collect())
}

/// In bytes; 0 for a process that is gone.
fn pss(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// Peak resident memory in bytes (proc(5), VmHWM); 0 for a process that is gone.
fn peak(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}
