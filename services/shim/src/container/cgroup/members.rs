//! Who is in a group: joining, listing, signalling, waiting until it is empty, removing it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Cgroup, read, write};
use crate::container::context::During;
use crate::container::error::{Error, Result};

/// The groups that a process is to be in, one of each hierarchy.
#[derive(Debug)]
pub(in crate::container) struct Entrance {
    /// The v2 directory.
    unified: Option<PathBuf>,
    v1: Vec<PathBuf>,
}

impl Entrance {
    /// The v2 directory, open for a process to be born in. `None`: there is no version 2, or it has no controllers here
    /// and the container no group in it.
    pub(in crate::container) fn open_unified(&self) -> Result<Option<OwnedFd>> {
        let Some(directory) = &self.unified else {
            return Ok(None);
        };
        match File::open(directory) {
            Ok(opened) => Ok(Some(opened.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.v1.is_empty() => {
                Ok(None)
            }
            // A process outside of it would have none of the container's limits.
            Err(error) => Err(error).during(
                "open cgroup",
                format_args!(
                    "{}, which the container's processes are to be in",
                    directory.display()
                ),
            ),
        }
    }

    /// Moves the calling process, which must have one thread, into the v1 groups.
    pub(in crate::container) fn join(&self) -> Result<()> {
        for directory in &self.v1 {
            // "0" in `tasks` is the one write that takes no global lock; see the module's header.
            let file = directory.join("tasks");
            write(&file, "0").during("join cgroup", file.display())?;
        }
        Ok(())
    }
}

impl Cgroup {
    /// Moves the calling process, which must have one thread, into the v1 groups.
    pub(in crate::container) fn join(&self) -> Result<()> {
        self.entrance(&[])?.join()
    }

    /// Where a further process goes: the container's own groups, or groups below them that exist, each named as `PATH`
    /// (of all hierarchies that have it) or `CONTROLLER[,CONTROLLER]:PATH`.
    pub(in crate::container) fn entrance(&self, below: &[String]) -> Result<Entrance> {
        let mut entrance = Entrance {
            unified: self.unified_directory(),
            v1: self.directories().map(|(_, directory)| directory).collect(),
        };
        for wanted in below {
            let refuse =
                |problem: &str| Err(Error::invalid(format!("--cgroup {wanted:?}"), problem));
            let (controllers, path) = match wanted.split_once(':') {
                Some((controllers, path)) => (Some(controllers), path),
                None => (None, wanted.as_str()),
            };
            if Path::new(path)
                .components()
                .any(|component| component == std::path::Component::ParentDir)
            {
                return refuse("`..` components are not allowed");
            }
            let path = path.trim_start_matches('/');
            let mut found = false;
            let directories = self
                .directories()
                .map(|(hierarchy, _)| Some(hierarchy))
                .zip(entrance.v1.iter_mut());
            let unified = entrance
                .unified
                .iter_mut()
                .map(|directory| (None, directory));
            for (hierarchy, directory) in directories.chain(unified) {
                let meant = controllers.is_none_or(|names| {
                    hierarchy
                        .is_some_and(|hierarchy| names.split(',').any(|name| hierarchy.has(name)))
                });
                let group = directory.join(path);
                if meant && group.is_dir() {
                    *directory = group;
                    found = true;
                }
            }
            if !found {
                return refuse("the container has no such cgroup");
            }
        }
        Ok(entrance)
    }

    /// Where a further process goes in a container that hands out controllers of version 2 to groups below its own: the
    /// kernel lets none into its own group any more (`EBUSY`), so it goes where the first process went.
    pub(in crate::container) fn entrance_beside(&self, pid: i32) -> Result<Entrance> {
        let file = format!("/proc/{pid}/cgroup");
        let table = std::fs::read_to_string(&file).during("read", &file)?;
        let Some(path) = group_below(&self.path, &table) else {
            return Err(Error::Unsupported {
                what: "a further process".to_owned(),
                why: format!(
                    "{} hands out controllers and so takes no process, and the container's first one is in no group \
                     below it; name one (--cgroup)",
                    self.path().display()
                ),
            });
        };
        Ok(Entrance {
            unified: self.layout.unified.as_ref().map(|root| root.join(path)),
            ..self.entrance(&[])?
        })
    }

    /// Moves another process there: slower, but possible where that one has no right to.
    pub(in crate::container) fn add(&self, pid: i32) -> Result<()> {
        for (_, directory) in self.directories() {
            let file = directory.join("cgroup.procs");
            write(&file, &pid.to_string()).during("join cgroup", file.display())?;
        }
        Ok(())
    }

    /// A directory that lists the members.
    fn listing(&self) -> Option<PathBuf> {
        self.unified_directory()
            .filter(|directory| directory.exists())
            .or_else(|| {
                self.directories()
                    .map(|(_, directory)| directory)
                    .find(|directory| directory.exists())
            })
    }

    /// All processes in it and in the groups below it.
    pub(in crate::container) fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        if let Some(directory) = self.listing() {
            collect(&directory, &mut pids).during("list processes", directory.display())?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills everything in it: in one step where the kernel can, else until nobody is left.
    pub(in crate::container) fn kill_all(&self) -> Result<()> {
        if let Some(directory) = self.unified_directory()
            && write(&directory.join("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        // Each round may meet children born since the last.
        for _ in 0..64 {
            let pids = self.processes()?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                send(pid, libc::SIGKILL)?;
            }
        }
        Ok(())
    }

    /// Sends a signal to everybody in it.
    pub(in crate::container) fn signal_all(&self, signal: i32) -> Result<()> {
        for pid in self.processes()? {
            send(pid, signal)?;
        }
        Ok(())
    }

    /// Waits until nobody is in it; `false`: not by the deadline.
    pub(in crate::container) fn wait_empty(&self, deadline: Instant) -> Result<bool> {
        let events = self
            .unified_directory()
            .and_then(|directory| File::open(directory.join("cgroup.events")).ok());
        loop {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(false);
            };
            if let Some(events) = &events {
                if !is_populated(events) {
                    return Ok(true);
                }
                wait(events, PollFlags::PRI, left);
                continue;
            }
            let pids = self.processes()?;
            let Some(pid) = pids.first() else {
                return Ok(true);
            };
            // Without events: the end of the first of them.
            if let Some(pid) = Pid::from_raw(*pid)
                && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            {
                wait(&pidfd, PollFlags::IN, left);
            }
        }
    }

    /// Removes its directories, groups made below it by the container included.
    pub(in crate::container) fn remove(&self, deadline: Instant) -> Result<()> {
        let mut first = None;
        let all = self
            .directories()
            .map(|(_, directory)| directory)
            .chain(self.unified_directory());
        for directory in all {
            if let Err(error) = remove_tree(&directory, deadline) {
                let error = Error::step("remove cgroup", directory.display().to_string(), error);
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// The path of the v2 group in a /proc/PID/cgroup, if it is below `group`.
fn group_below(group: &Path, table: &str) -> Option<PathBuf> {
    let path = Path::new(table.lines().find_map(|line| line.strip_prefix("0::/"))?);
    (path.starts_with(group) && path != group).then(|| path.to_owned())
}

fn is_populated(mut events: &File) -> bool {
    use std::io::{Read, Seek};
    let mut text = String::new();
    // A group that is gone has nobody.
    events.rewind().is_ok()
        && events.read_to_string(&mut text).is_ok()
        && text.lines().any(|line| line == "populated 1")
}

fn wait(fd: impl AsFd, flags: PollFlags, left: Duration) {
    let timeout = Timespec {
        tv_sec: left.as_secs().min(60) as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let _ = poll(&mut [PollFd::new(&fd, flags)], Some(&timeout));
}

fn collect(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    match read(&directory.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // A threaded v2 group lists its threads elsewhere; a group just removed has none.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::ENOENT | libc::ENODEV)
            ) => {}
        Err(error) => return Err(error),
    }
    for child in children(directory) {
        collect(&child, pids)?;
    }
    Ok(())
}

fn children(directory: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    // Two links: no group below. This saves listing some fifty files.
    if std::fs::metadata(directory).is_ok_and(|metadata| metadata.nlink() == 2) {
        return Vec::new();
    }
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(directory: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        let error = match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= deadline {
            return Err(error);
        }
        let below = children(directory);
        for child in &below {
            remove_tree(child, deadline)?;
        }
        if below.is_empty() {
            // Nobody is in it, but the last to leave is still on its way out of the v1 group, and for
            // that the kernel has no event.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

fn send(pid: i32, signal: i32) -> Result<()> {
    match gantry_sys::process::send_signal(pid, signal) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(error).during("signal", format_args!("process {pid}"))
        }
        _ => Ok(()),
    }
}

/// Waits until a descriptor is readable, or for as long.
pub(in crate::container) fn wait_readable(fd: impl AsFd, left: Duration) {
    wait(fd, PollFlags::IN, left);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_leads_to_a_group_below_the_containers_only() {
        let below = |table: &str| group_below(Path::new("a/box"), table);
        assert_eq!(
            below("1:name=systemd:/x\n0::/a/box/init\n"),
            Some("a/box/init".into())
        );
        for elsewhere in [
            "0::/a/box\n",
            "0::/a/boxes/init\n",
            "0::/\n",
            "4:cpu:/a/box/init\n",
        ] {
            assert_eq!(below(elsewhere), None, "{elsewhere}");
        }
    }
}
