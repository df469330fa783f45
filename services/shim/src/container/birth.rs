//! How the container's first process comes to be: cloned here, or where it joins a user namespace, by a go-between.
//!
//! What a namespace lets its processes do is decided by the user namespace that it was made in. So the namespaces of a
//! container in a user namespace must be made by somebody who is in it already, and that can not be this process, which
//! would never get out again. It is a process that lives for two calls: it enters, and clones the container's
//! first process as a child of this one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use gantry_sys::clone::CloneOptions;
use oci_spec::runtime::LinuxNamespaceType as Kind;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::context::During;
use super::error::{Error, Result};
use super::handle::wait_ended;
use super::init::{self, Lines};
use super::launch;
use super::namespaces::{self, Lent};
use super::setup::Setup;
use super::wire::{self, Message};

/// Clones the first process: its PID and its pidfd.
pub(super) fn first_process(
    setup: &Setup<'_>,
    unified: Option<&OwnedFd>,
    lines: Lines<'_>,
    zero: Instant,
) -> Result<(i32, OwnedFd)> {
    let mut lent = Lent::default();
    for join in &setup.namespaces.join {
        if !setup.joins_in_child(join.kind) && join.kind != Kind::User {
            lent.to(join)?;
        }
    }
    let own = CloneOptions {
        namespaces: setup.namespaces.clone_flags(),
        cgroup: unified.map(AsFd::as_fd),
        sibling: false,
    };
    if setup.namespaces.joins(Kind::User) {
        return through_go_between(setup, own, lines, zero);
    }
    gantry_sys::clone::clone(own, || init::run(setup, lines, zero))
        .during("clone", "the container's first process")
}

fn through_go_between(
    setup: &Setup<'_>,
    own: CloneOptions<'_>,
    lines: Lines<'_>,
    zero: Instant,
) -> Result<(i32, OwnedFd)> {
    let (near, far) = wire::pair().during("make", "socket pair")?;
    // It is born in the group: from within the user namespace nobody could be put there.
    let between = CloneOptions {
        namespaces: 0,
        ..own
    };
    let own = CloneOptions {
        sibling: true,
        cgroup: None,
        ..own
    };
    let (_, pidfd) = gantry_sys::clone::clone(between, || {
        let born = enter(setup).and_then(|()| {
            gantry_sys::clone::clone(own, || init::run(setup, lines, zero))
                .during("clone", "the container's first process")
        });
        let said = match &born {
            Ok((_, pidfd)) => wire::send(far.as_fd(), &Message::Born, Some(pidfd.as_fd())),
            Err(error) => wire::send(far.as_fd(), &Message::Failed(error.into()), None),
        };
        i32::from(said.is_err())
    })
    .during("clone", "a process that enters the user namespace")?;
    drop(far);
    let heard = wire::receive(near.as_fd()).during("hear from", "the go-between");
    let how = wait_ended(pidfd.as_fd());
    match heard? {
        Some((Message::Born, Some(pidfd))) => {
            // The go-between's own number for it may be another PID namespace's.
            let pid = pid_of(pidfd.as_fd())?;
            Ok((pid, pidfd))
        }
        Some((Message::Failed(failure), _)) => Err(failure.into()),
        Some(_) | None => Err(Error::Died {
            step: "enter the user namespace".to_owned(),
            how,
        }),
    }
}

/// Into the user namespace, as its root. What only the host's root may do comes before; it is inherited.
fn enter(setup: &Setup<'_>) -> Result<()> {
    launch::set_oom_score(setup.launch.process)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).during("make undumpable", "go-between")?;
    for join in &setup.namespaces.join {
        if join.kind == Kind::User {
            namespaces::enter(join)?;
            init::become_root()?;
        }
    }
    Ok(())
}

/// A process' PID as this process has it (proc(5), /proc/PID/fdinfo).
fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i32> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(&path).during("read", &path)?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| Error::Died {
            step: "clone".to_owned(),
            how: "ended".to_owned(),
        })
}
