//! A private engine for one test: its own directory, bridge, subnet, firewall
//! table and cgroup, so that tests run side by side and beside whatever else
//! the machine does.
//!
//! [`Engine::start`] runs `gantry up` and waits until it says that it is ready
//! (`READY=1`, as sd_notify(3) has it). A test ends with [`Engine::finish`],
//! which removes all containers and images, audits, stops the engine, and
//! audits again. An engine that is dropped before is put away by force, and
//! that is a failed test.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_kit::identity::Identity;
use gantry_kit::paths::Paths;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use crate::audit::{self, Marks};
use crate::command::{self, DEADLINE, Outcome};

/// Longest start of an engine, on a machine that does ten other things.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Longest stop: the services drain, then the kernel cleans up.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The services, each with its process and its socket.
pub const SERVICES: [&str; 5] = ["gateway", "image", "network", "registry", "runtime"];

/// How an engine is to differ from the usual.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More of its configuration, as TOML tables.
    pub config: String,
    /// The whole configuration file; what makes the engine private goes over it
    /// by the environment then. Absent: a file with just that, and `config`.
    pub file: Option<String>,
    /// More environment variables for `gantry up`.
    pub environment: Vec<(String, String)>,
    /// Where its binaries are. Absent: beside the test.
    pub bin_dir: Option<PathBuf>,
    /// Length of its root directory's path in bytes. Absent: a short one.
    pub root_length: Option<usize>,
    /// The umask that `gantry up` is started with, in octal. Absent: the test's.
    pub umask: Option<&'static str>,
    /// True: what makes the engine private is its root directory alone.
    pub by_root: bool,
    /// Words in front of `gantry up`: a program that executes what follows.
    pub wrapper: Vec<String>,
    /// The directory to make the engine's own in. Absent: /tmp.
    pub parent: Option<PathBuf>,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    /// The root is in it, or is it. Absent: the root is the caller's, and stays.
    _directory: Option<TempDir>,
    bin_dir: PathBuf,
    marks: Marks,
    up: Child,
    options: Options,
    finished: bool,
}

impl Engine {
    /// # Errors
    /// The engine does not become ready; the error shows what it said.
    pub fn start() -> Result<Self> {
        Self::with(Options::default())
    }

    /// # Errors
    /// As [`Engine::start`].
    pub fn with(mut options: Options) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "whole-system tests need root: they make namespaces, mounts and interfaces"
        );
        let parent = options.parent.as_deref().unwrap_or(Path::new("/tmp"));
        let directory = tempfile::Builder::new().prefix("gt-").tempdir_in(parent)?;
        let root = root_in(directory.path(), options.root_length)?;
        let mut random = [0; 4];
        getrandom::fill(&mut random).context("no random numbers")?;
        let tag = hex::encode(random);
        let mut marks = Marks {
            root: root.clone(),
            bridge: format!("gt{tag}"),
            table: format!("gantry_{tag}"),
            cgroup: format!("gantry_{tag}"),
            ..Marks::default()
        };
        let mut private = crate::config::private(&marks, &free_subnet(random)?);
        if options.by_root {
            let identity = Identity::of(&Paths::under(&root)?);
            for name in [&mut marks.bridge, &mut marks.table, &mut marks.cgroup] {
                *name = identity.scoped("gantry");
            }
            private.clear();
        }
        let config = match &options.file {
            Some(file) => {
                options
                    .environment
                    .extend(crate::config::as_environment(&private));
                file.clone()
            }
            None => format!("{}\n{}", crate::config::as_file(&private), options.config),
        };
        fs::write(root.join("gantry.toml"), config)?;
        Self::launched(Some(directory), marks, options)
    }

    /// Starts an engine on the files of an earlier one, which has ended: its root
    /// directory, with the configuration that it wrote there. The directory stays
    /// when this one ends.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn on_files_of(marks: &Marks, options: Options) -> Result<Self> {
        Self::launched(None, marks.clone(), options)
    }

    fn launched(directory: Option<TempDir>, marks: Marks, options: Options) -> Result<Self> {
        let bin_dir = match &options.bin_dir {
            Some(directory) => directory.clone(),
            None => bin_dir()?,
        };
        let up = launch(&marks.root, &bin_dir, &options)?;
        let mut engine = Self {
            _directory: directory,
            bin_dir,
            marks,
            up,
            options,
            finished: false,
        };
        engine.marks.services = engine.service_processes()?;
        Ok(engine)
    }

    /// Ends every process of the engine at once, as a power cut does, and takes
    /// away what the kernel would have forgotten. Its files stay where they are.
    pub fn cut_power(mut self) {
        crate::rescue::put_away(&self.marks, &mut self.up);
        self.finished = true;
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.marks.root
    }

    #[must_use]
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    #[must_use]
    pub fn socket(&self, service: &str) -> PathBuf {
        self.root().join("run").join(format!("{service}.sock"))
    }

    /// A `gantry` command for this engine, not yet run.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(self.bin_dir.join("gantry"));
        command
            .arg("--root")
            .arg(self.root())
            .args(arguments)
            .current_dir("/");
        for (name, value) in &self.options.environment {
            command.env(name, value);
        }
        command
    }

    /// Runs `gantry ARGUMENTS` to its end.
    ///
    /// # Errors
    /// It cannot be run or hangs. Its own failure is in the outcome.
    pub fn gantry<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Outcome> {
        command::run(&mut self.command(arguments), b"", DEADLINE)
    }

    /// As [`Engine::gantry`], with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Engine::gantry`].
    pub fn gantry_with_input<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        input: &[u8],
    ) -> Result<Outcome> {
        command::run(&mut self.command(arguments), input, DEADLINE)
    }

    /// Runs `gantry ARGUMENTS`, which must succeed, for its output.
    ///
    /// # Errors
    /// It fails.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        self.gantry(arguments)?.text()
    }

    /// What the services have logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.root().join("up.log")
    }

    /// The process of `gantry up`.
    #[must_use]
    pub fn up_pid(&self) -> i32 {
        self.up.id().cast_signed()
    }

    /// The process of one service.
    ///
    /// # Errors
    /// There is none.
    pub fn service_pid(&self, service: &str) -> Result<i32> {
        let name = format!("gantry-{service}");
        self.service_processes()?
            .into_iter()
            .find(|&pid| program_of(pid) == name)
            .with_context(|| format!("no process of {name}"))
    }

    /// `gantry up` and the services it started.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn service_processes(&self) -> Result<BTreeSet<i32>> {
        let names: Vec<String> = SERVICES
            .iter()
            .map(|name| format!("gantry-{name}"))
            .collect();
        self.processes(|pid, _| pid == self.up_pid() || names.contains(&program_of(pid)))
    }

    /// The shims of its containers.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn shims(&self) -> Result<BTreeSet<i32>> {
        // Its program is executed from a view of its file, which has no name.
        self.processes(|_, command| command.starts_with("gantry-shim "))
    }

    /// Processes whose command line names the engine's directory.
    fn processes(&self, wanted: impl Fn(i32, &str) -> bool) -> Result<BTreeSet<i32>> {
        let root = self.root().to_string_lossy().into_owned();
        Ok(audit::all_processes()?
            .into_iter()
            .filter(|&pid| {
                let command = audit::command_of(pid);
                command.contains(&root) && wanted(pid, &command)
            })
            .collect())
    }

    /// Kills one service and waits until `gantry up` has brought it back.
    ///
    /// # Errors
    /// It does not come back.
    pub fn kill_service(&mut self, service: &str, signal: Signal) -> Result<()> {
        let old = self.service_pid(service)?;
        send(old, signal)?;
        let end = Instant::now() + START_DEADLINE;
        loop {
            match self.service_pid(service) {
                Ok(pid) if pid != old && crate::grpc::is_serving(&self.socket(service)) => break,
                _ if Instant::now() > end => {
                    bail!(
                        "{service} did not come back after {signal:?}:\n{}",
                        self.log()
                    )
                }
                // Nobody announces a restarted child to its grandparent.
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self.marks.services = self.service_processes()?;
        Ok(())
    }

    /// Stops `gantry up` with `signal`, leaving containers to themselves, and
    /// starts it again.
    ///
    /// # Errors
    /// It does not stop, or not start.
    pub fn restart(&mut self, signal: Signal) -> Result<()> {
        self.stop_up(signal)?;
        self.start_again()
    }

    /// Kills `gantry up` alone and starts another one at once, while the services
    /// of the first still end.
    ///
    /// # Errors
    /// The other one does not start.
    pub fn replace_killed_up(&mut self) -> Result<()> {
        send(self.up_pid(), Signal::KILL)?;
        let killed = launch(self.root(), &self.bin_dir, &self.options)
            .map(|up| std::mem::replace(&mut self.up, up));
        killed?.wait()?;
        self.marks.services = self.service_processes()?;
        Ok(())
    }

    /// Starts the engine again after [`Engine::stop_up`].
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.up = launch(self.root(), &self.bin_dir, &self.options)?;
        self.marks.services = self.service_processes()?;
        Ok(())
    }

    /// Ends `gantry up` and all services, and waits for them.
    ///
    /// # Errors
    /// One of them does not end.
    pub fn stop_up(&mut self, signal: Signal) -> Result<()> {
        // A process that is killed loses its command line first and its sockets
        // last: only its end says that another may listen on them.
        let services = self.services_but_up()?;
        let ends: Vec<_> = services.iter().map(|&pid| (pid, end_of(pid))).collect();
        send(self.up_pid(), signal)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        ensure!(
            command::wait_until(&self.up, deadline)?,
            "`gantry up` did not end after {signal:?}:\n{}",
            self.log()
        );
        self.up.wait()?;
        if signal == Signal::KILL {
            for pid in services {
                // Those that noticed their parent's end are gone already.
                let _ = send(pid, signal);
            }
        }
        for (pid, end) in ends {
            // None: it had ended before.
            let Some(end) = end else { continue };
            ensure!(
                command::wait_readable(&end, deadline)?,
                "process {pid} ({}) did not end after {signal:?}:\n{}",
                audit::command_of(pid),
                self.log()
            );
        }
        audit::nothing_left("services", STOP_DEADLINE, || {
            let left = self.services_but_up()?.into_iter();
            Ok(left
                .map(|pid| format!("process {pid} ({})", audit::command_of(pid)))
                .collect())
        })
    }

    fn services_but_up(&self) -> Result<BTreeSet<i32>> {
        let mut services = self.service_processes()?;
        services.remove(&self.up_pid());
        Ok(services)
    }

    /// Fails when containers left anything behind; the engine runs on.
    ///
    /// # Errors
    /// Something was left.
    pub fn audit_containers(&self) -> Result<()> {
        audit::nothing_left("containers", Duration::from_secs(30), || {
            audit::traces_of_containers(&self.marks)
        })
    }

    /// Remembers a container's id for the audit.
    pub fn remember(&mut self, id: &str) {
        self.marks.containers.insert(id.to_owned());
    }

    /// The end of every test: removes containers and images, audits, stops the
    /// engine, audits again.
    ///
    /// # Errors
    /// Something was left behind, or a step failed.
    pub fn finish(mut self) -> Result<()> {
        let outcome = self.close();
        if let Err(error) = outcome {
            return Err(error.context(format!("engine log:\n{}", tail(&self.log(), 60))));
        }
        self.finished = true;
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let containers = self.ok(&["ps", "--all", "--quiet", "--no-trunc"])?;
        let ids: Vec<&str> = containers.lines().collect();
        self.marks
            .containers
            .extend(ids.iter().map(|&id| id.to_owned()));
        if !ids.is_empty() {
            self.ok(&[&["rm", "--force", "--volumes"], ids.as_slice()].concat())?;
        }
        // What was made for a container alone went with it.
        let anonymous = "label=com.docker.volume.anonymous";
        let left = self.ok(&["volume", "ls", "--quiet", "--filter", anonymous])?;
        ensure!(left.is_empty(), "anonymous volumes are left: {left}");
        self.ok(&["volume", "prune", "--all", "--force"])?;
        let images: BTreeSet<String> = self
            .ok(&["images", "--all", "--quiet", "--no-trunc"])?
            .lines()
            .map(str::to_owned)
            .collect();
        if !images.is_empty() {
            let mut words = vec!["rmi".to_owned(), "--force".to_owned()];
            words.extend(images);
            self.ok(&words)?;
        }
        self.audit_containers()?;
        audit::nothing_left("images", Duration::from_secs(30), || {
            audit::image_files(self.root())
        })?;
        self.stop_up(Signal::TERM)?;
        audit::nothing_left("the engine", Duration::from_secs(30), || {
            audit::traces_of_engine(&self.marks)
        })?;
        crate::rescue::remove_cgroups(&self.marks);
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        eprintln!("--- engine log\n{}---", tail(&self.log(), 120));
        crate::rescue::put_away(&self.marks, &mut self.up);
        if !std::thread::panicking() {
            eprintln!("the engine was dropped without Engine::finish");
        }
    }
}

/// Sends `signal` to `pid`.
///
/// # Errors
/// There is no such process.
pub fn send(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("no process id")?;
    kill_process(pid, signal).with_context(|| format!("{signal:?} to process {pid:?}"))
}

/// The directory of the binaries that were built with this test.
///
/// # Errors
/// They were not built.
pub fn bin_dir() -> Result<PathBuf> {
    // target/PROFILE/deps/test or target/PROFILE/program
    let program = std::env::current_exe()?;
    for directory in program.ancestors().skip(1).take(2) {
        if directory.join("gantry").is_file() {
            return Ok(directory.to_owned());
        }
    }
    bail!("no `gantry` beside {program:?}: run `cargo build --workspace --bins` first")
}

/// Becomes readable when the process ends.
fn end_of(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn program_of(pid: i32) -> String {
    fs::read_link(format!("/proc/{pid}/exe"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        // A binary that was built anew while it ran.
        .map(|name| name.trim_end_matches(" (deleted)").to_owned())
        .unwrap_or_default()
}

/// A directory in `parent` whose path has `length` bytes, or `parent` itself.
fn root_in(parent: &Path, length: Option<usize>) -> Result<PathBuf> {
    let Some(length) = length else {
        return Ok(parent.to_owned());
    };
    let missing = length
        .checked_sub(parent.as_os_str().len() + 1)
        .context("the root cannot be that short")?;
    let root = parent.join("r".repeat(missing));
    fs::create_dir(&root)?;
    Ok(root)
}

/// Starts `gantry up` and waits for its READY=1.
fn launch(root: &Path, bin_dir: &Path, options: &Options) -> Result<Child> {
    // Beside the root: a socket's path has at most 107 bytes.
    let directory = tempfile::Builder::new().prefix("gt-").tempdir_in("/tmp")?;
    let notify = directory.path().join("notify.sock");
    let socket = UnixDatagram::bind(&notify)?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(root.join("up.log"))?;
    let program = bin_dir.join("gantry");
    let mut words = options.wrapper.clone();
    if let Some(umask) = options.umask {
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        words.extend(["/bin/sh".to_owned(), "-c".to_owned(), script]);
    }
    let mut command = match words.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        None => Command::new(program),
    };
    let mut up = command
        .arg("--root")
        .arg(root)
        .arg("up")
        .current_dir("/")
        .env("NOTIFY_SOCKET", &notify)
        .envs(options.environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {:?}", bin_dir.join("gantry")))?;
    match wait_ready(&socket, &up) {
        Ok(()) => Ok(up),
        Err(error) => {
            let _ = up.kill();
            let _ = up.wait();
            let log = fs::read_to_string(root.join("up.log")).unwrap_or_default();
            Err(error.context(format!("`gantry up` said:\n{log}")))
        }
    }
}

fn wait_ready(socket: &UnixDatagram, up: &Child) -> Result<()> {
    let end = Instant::now() + START_DEADLINE;
    let mut message = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(
            !left.is_zero(),
            "it was not ready within {START_DEADLINE:?}"
        );
        // A short wait, so that an `up` that ended early is seen.
        socket.set_read_timeout(Some(left.min(Duration::from_millis(200))))?;
        match socket.recv(&mut message) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                ensure!(
                    !command::wait_until(up, Instant::now())?,
                    "it ended before it was ready"
                );
            }
            Err(error) => return Err(error).context("the notification socket"),
        }
    }
}

/// A /24 that no interface of this machine has an address in.
fn free_subnet(random: [u8; 4]) -> Result<String> {
    let taken = fs::read_to_string("/proc/net/fib_trie").context("the kernel's routes")?;
    for attempt in 0..64_u8 {
        let subnet = format!(
            "10.{}.{}",
            128 + (random[0] & 0x7f),
            random[1].wrapping_add(attempt)
        );
        if !taken.contains(&format!("{subnet}.0")) {
            return Ok(format!("{subnet}.0/24"));
        }
    }
    bail!("no free subnet in 10.128.0.0/9")
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// One test: starts an engine, runs `test` with it, and finishes it.
///
/// # Errors
/// The test fails, or the engine leaves something behind.
pub fn with_engine(test: impl FnOnce(&mut Engine) -> Result<()>) -> Result<()> {
    let mut engine = Engine::start()?;
    test(&mut engine)?;
    engine.finish()
}
