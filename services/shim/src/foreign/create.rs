//! `create`: everything the program needs, the program, and what it made.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::{BoxBuilder, Process as SpecProcess, Spec};

use super::command::{Call, Streams};
use super::terminal::Expected;
use super::{Foreign, Program, births};
use crate::container::{
    self, Container, Outside, Record, Stdio, TerminalSize, Timing, enter_own_mounts,
};
use crate::created::{Created, shares_pids};
use crate::error::{Error, Result};
use crate::exit;
use crate::process::{Ends, Process, Wanted, streams};
use crate::shim::{Create, Shim, keep_record};
use crate::stdio::lock;

/// Hooks run in it. With what undoing takes, shorter than the runtime service waits.
const CREATE_LIMIT: Duration = Duration::from_secs(18);

/// The first process of a container that was just made.
struct Made {
    container: Container,
    ends: Ends,
    terminal: Option<OwnedFd>,
}

/// Has the program make the container.
///
/// # Errors
/// There is one already, or it cannot be made: then nothing of it is left.
pub async fn create(
    shim: Arc<Shim>,
    create: Create,
    program: Program,
) -> Result<(i32, Vec<Timing>)> {
    let _one = shim.births.verbs.lock().await;
    if let Some(created) = &*lock(&shim.created) {
        return Err(Error::Created {
            id: created.container.id().to_owned(),
        });
    }
    let foreign = Arc::new(Foreign::new(program, &create.id, &create.bundle));
    let cgroup = create
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone());
    let record = Record::of_another(&create.id, &create.bundle, cgroup.as_deref())?;
    let made = foreign.make(&shim, create, &record).await;
    if made.is_err() {
        // The first error is the one to tell.
        foreign.delete(&shim).await;
        let _left = Container::reopen(record).and_then(|container| container.delete());
        foreign.leave();
    }
    made
}

impl Foreign {
    async fn make(
        self: &Arc<Self>,
        shim: &Arc<Shim>,
        mut create: Create,
        record: &Record,
    ) -> Result<(i32, Vec<Timing>)> {
        let begin = Instant::now();
        let wanted = create.wanted();
        if let Some(process) = create.spec.process_mut() {
            shim.keep_oom_score(process);
        }
        // Before anything is made: whoever cleans up after a dead shim finds the cgroup.
        keep_record(record, &create.bundle)?;
        self.prepare(&mut create)?;
        let prepared = elapsed(begin);
        let _expecting = shim.births.expect();
        let made = self.call(shim, &wanted, record).await?;
        let pid = made.container.pid();
        keep_record(made.container.record(), &create.bundle)?;
        let log = create.log.take().map(Shim::log);
        let init = Process::adopt(
            "",
            pid,
            None,
            made.ends,
            made.terminal,
            &wanted,
            log.clone(),
        )?;
        let mut created = Created::new(
            made.container,
            shares_pids(&create.spec),
            create.bundle,
            init,
            log,
        );
        created.foreign = Some(self.clone());
        shim.keep(created);
        shim.catch_up(pid);
        let timing = |step: &str, start_ns, end_ns: u64| Timing {
            step: step.to_owned(),
            start_ns,
            duration_ns: end_ns.saturating_sub(start_ns),
        };
        Ok((
            pid,
            vec![
                timing("prepare", 0, prepared),
                timing("runtime", prepared, elapsed(begin)),
            ],
        ))
    }

    /// The program's bundle: the root mounted, the specification written.
    fn prepare(&self, create: &mut Create) -> Result<()> {
        let directory = self.directory();
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(Self::failed("cannot make the bundle of a runtime"))?;
        enter_own_mounts(&directory)?;
        let groups = container::prepare(
            &mut create.spec,
            &Outside {
                place: &directory,
                bundle: &create.bundle,
                overlay: create.overlay.as_ref(),
                user: create.user.as_deref(),
            },
        )?;
        *lock(&self.groups) = groups;
        if let Some(process) = create.spec.process_mut() {
            set_size(process, create.size);
        }
        self.write_spec(&create.spec)
    }

    fn write_spec(&self, spec: &Spec) -> Result<()> {
        let failed = Self::failed("cannot write the specification for a runtime");
        let text = serde_json::to_vec(spec).map_err(|error| failed(error.into()))?;
        exit::write_whole(&self.directory(), "config.json", &text).map_err(|error| {
            Self::failed("cannot write the specification for a runtime")(std::io::Error::other(
                error,
            ))
        })
    }

    async fn call(&self, shim: &Shim, wanted: &Wanted, record: &Record) -> Result<Made> {
        const VERB: &str = "create";
        let number = self.number();
        let pid_file = self.directory().join(format!("pid.{number}"));
        let (ends, expected) = self
            .spawn(shim, VERB, number, wanted, &pid_file, &[], CREATE_LIMIT)
            .await?;
        let pid = self.made(VERB, &pid_file)?;
        let container = Container::reopen(record.clone().with_first_process(pid)?)?;
        if container.has_ended() {
            return Err(self.unfit(VERB, "the container's process has ended at once".to_owned()));
        }
        if births::parent_of(pid) != Some(std::process::id()) {
            return Err(self.unfit(
                VERB,
                "the container's process is not its caller's child; such a runtime cannot be used"
                    .to_owned(),
            ));
        }
        if !container.processes()?.contains(&pid) {
            let path = container.record().cgroup.display();
            return Err(self.unfit(
                VERB,
                format!("the container's process is not in the cgroup {path}; such a runtime cannot be used"),
            ));
        }
        let terminal = self.terminal(VERB, expected, wanted.size)?;
        container::let_go()?;
        Ok(Made {
            container,
            ends,
            terminal,
        })
    }

    pub(super) fn terminal(
        &self,
        verb: &'static str,
        expected: Option<Expected>,
        size: Option<TerminalSize>,
    ) -> Result<Option<OwnedFd>> {
        expected
            .map(|expected| expected.take(size))
            .transpose()
            .map_err(|error| self.unfit(verb, format!("it sent no terminal: {error}")))
    }

    /// A call that makes a process with these streams.
    #[expect(clippy::too_many_arguments, reason = "create and exec differ in each")]
    pub(super) async fn spawn(
        &self,
        shim: &Shim,
        verb: &'static str,
        number: u64,
        wanted: &Wanted,
        pid_file: &Path,
        words: &[&OsStr],
        limit: Duration,
    ) -> Result<(Ends, Option<Expected>)> {
        let (stdio, ends) = streams(wanted)?;
        let expected = match &stdio {
            Stdio::Terminal { .. } => Some(
                Expected::at(&self.bundle, number)
                    .map_err(Self::failed("cannot wait for a terminal"))?,
            ),
            Stdio::Pipes { .. } | Stdio::Inherit => None,
        };
        let streams = match stdio {
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            } => Some(Streams {
                stdin,
                stdout,
                stderr,
            }),
            Stdio::Terminal { .. } | Stdio::Inherit => None,
        };
        let directory = self.directory();
        let mut all: Vec<&OsStr> = Vec::new();
        if verb == "create" {
            all.extend([OsStr::new("--bundle"), directory.as_os_str()]);
        }
        all.extend([OsStr::new("--pid-file"), pid_file.as_os_str()]);
        let console = expected.as_ref().map(Expected::path);
        if let Some(console) = &console {
            all.extend([OsStr::new("--console-socket"), console.as_os_str()]);
        }
        all.extend(words);
        self.run(
            shim,
            Call {
                verb,
                words: &all,
                streams: streams.map(|streams| (streams, &ends)),
                limit,
            },
        )
        .await?;
        Ok((ends, expected))
    }
}

/// The first size of the terminal, where the program sets it.
pub(super) fn set_size(process: &mut SpecProcess, size: Option<TerminalSize>) {
    let size = size.filter(|_| process.terminal().unwrap_or(false));
    let size = size.and_then(|size| {
        BoxBuilder::default()
            .width(u64::from(size.width))
            .height(u64::from(size.height))
            .build()
            .ok()
    });
    if size.is_some() {
        process.set_console_size(size);
    }
}

fn elapsed(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
