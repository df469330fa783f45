//! A container that was made, as the shim keeps it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::container::{Container, Filter};
use crate::error::{Error, Result};
use crate::foreign::Foreign;
use crate::log::Log;
use crate::process::Process;

/// What the container is doing; see the diagram of [`crate::shim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Empty,
    Created,
    Running,
    Paused,
    Stopped,
}

#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) container: Container,
    /// The program that made it. `None`: the library did.
    pub(crate) foreign: Option<Arc<Foreign>>,
    /// What further processes are held to.
    pub(crate) filter: Option<Arc<Filter>>,
    /// Without a PID namespace of its own the kernel does not end the other
    /// processes with the first one.
    pub(crate) shares_pids: bool,
    pub(crate) bundle: PathBuf,
    pub(crate) init: Arc<Process>,
    pub(crate) log: Option<Arc<Mutex<Log>>>,
    pub(crate) started_at: Option<SystemTime>,
    /// Why its program could not be executed.
    pub(crate) start_error: Option<(i32, String)>,
    pub(crate) paused: bool,
    pub(crate) execs: HashMap<String, Arc<Process>>,
    /// Ids of processes that a program is making.
    pub(crate) arriving: HashSet<String>,
    /// Ids in `execs` of processes that have ended, the oldest first.
    pub(crate) ended: VecDeque<String>,
}

impl Created {
    pub(crate) fn new(
        container: Container,
        shares_pids: bool,
        bundle: PathBuf,
        init: Arc<Process>,
        log: Option<Arc<Mutex<Log>>>,
    ) -> Self {
        Self {
            container,
            foreign: None,
            filter: None,
            shares_pids,
            bundle,
            init,
            log,
            started_at: None,
            start_error: None,
            paused: false,
            execs: HashMap::new(),
            arriving: HashSet::new(),
            ended: VecDeque::new(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        if self.init.exit().is_some() {
            Status::Stopped
        } else if self.paused {
            Status::Paused
        } else if self.started_at.is_some() {
            Status::Running
        } else {
            Status::Created
        }
    }

    /// Whether a process may be called so.
    pub(crate) fn free(&self, exec_id: &str) -> Result<()> {
        match self.execs.get(exec_id) {
            Some(process) if process.exit().is_none() => Err(Error::ProcessExists {
                exec_id: exec_id.to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn process(&self, exec_id: &str) -> Result<&Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(&self.init);
        }
        self.execs.get(exec_id).ok_or_else(|| Error::NoProcess {
            exec_id: exec_id.to_owned(),
        })
    }
}

pub(crate) fn shares_pids(spec: &Spec) -> bool {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    !namespaces.is_some_and(|all| {
        all.iter()
            .any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_none())
    })
}
