//! Puts a failed test's engine away by force, so that one failure does not
//! spoil the machine for the next test. Best effort: what it cannot do, the
//! failure that came before is more worth reading than.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::audit::{self, Marks};
use crate::{command, engine};

/// Kills what belongs to the engine, then takes its interface, its firewall
/// table and its cgroups away.
pub(crate) fn put_away(marks: &Marks, up: &mut Child) {
    // `gantry up` first: it would start again what dies.
    let _ = up.kill();
    let _ = up.wait();
    // Several rounds: a process may have been forking.
    for _ in 0..10 {
        let left = processes(marks);
        if left.is_empty() {
            break;
        }
        for pid in left {
            let _ = engine::send(pid, Signal::KILL);
        }
        wait_for_ends(Duration::from_millis(50));
    }
    unmount(&marks.root);
    let quick = Duration::from_secs(5);
    for family in ["inet", "ip", "ip6"] {
        let _ = command::run(
            Command::new("nft").args(["delete", "table", family, &marks.table]),
            b"",
            quick,
        );
    }
    let _ = command::run(
        Command::new("ip").args(["link", "delete", &marks.bridge]),
        b"",
        quick,
    );
    remove_cgroups(marks);
}

/// Removes the engine's cgroups, those that are empty.
pub(crate) fn remove_cgroups(marks: &Marks) {
    for cgroup in cgroups(marks) {
        let _ = fs::remove_dir(cgroup);
    }
}

fn processes(marks: &Marks) -> BTreeSet<i32> {
    let root = marks.root.to_string_lossy().into_owned();
    audit::all_processes()
        .unwrap_or_default()
        .into_iter()
        .filter(|&pid| pid.cast_unsigned() != std::process::id())
        .filter(|&pid| {
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            audit::command_of(pid).contains(&root) || cgroup.contains(&marks.cgroup)
        })
        .collect()
}

/// SIGKILL is no event that a stranger can wait for.
fn wait_for_ends(pause: Duration) {
    let end = Instant::now() + pause;
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}

fn unmount(root: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let prefix = format!("{}/", root.display());
    for line in table.lines().rev() {
        if let Some(target) = line.split(' ').nth(4)
            && target.starts_with(&prefix)
        {
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The engine's cgroups, the innermost first.
fn cgroups(marks: &Marks) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains(&marks.cgroup) {
                    found.push(path.clone());
                }
                pending.push(path);
            }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}
