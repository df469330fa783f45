//! `exec`.

use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{Capability, LinuxCapabilities, Process, User};

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::create::write_pid;
use super::foreground::{self, Foreground};
use super::{output, store};
use crate::container::{self, ExecOptions, Filter, Stdio};

#[derive(Default)]
struct Options {
    process: Option<PathBuf>,
    terminal: bool,
    cwd: Option<PathBuf>,
    environment: Vec<String>,
    user: Option<String>,
    groups: Vec<u32>,
    detach: bool,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    no_new_privileges: bool,
    capabilities: Vec<String>,
    preserve_fds: u32,
    cgroups: Vec<String>,
    ignore_paused: bool,
}

/// `exec [options] ID [COMMAND …]`.
pub(super) fn exec(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let mut options = Options::default();
    while let Some(flag) = words.flag() {
        match flag.name.as_str() {
            "process" | "p" => options.process = Some(words.value(&flag)?.into()),
            "tty" | "t" => options.terminal = flag.is_on(),
            "cwd" => options.cwd = Some(words.value(&flag)?.into()),
            "env" | "e" => options.environment.push(words.value(&flag)?),
            "user" | "u" => options.user = Some(words.value(&flag)?),
            "additional-gids" | "g" => options.groups.push(words.number(&flag)?),
            "detach" | "d" => options.detach = flag.is_on(),
            "pid-file" => options.pid_file = Some(words.value(&flag)?.into()),
            "console-socket" => options.console_socket = Some(words.value(&flag)?.into()),
            "no-new-privs" => options.no_new_privileges = flag.is_on(),
            "cap" | "c" => options.capabilities.push(words.value(&flag)?),
            "preserve-fds" => options.preserve_fds = words.number(&flag)?,
            "ignore-paused" => options.ignore_paused = flag.is_on(),
            "cgroup" => options.cgroups.push(words.value(&flag)?),
            "process-label" | "apparmor" | "pidfd-socket" => {
                words.value(&flag)?;
            }
            _ => return Err(flag.unknown("exec")),
        }
    }
    let id = words.required("the container's id")?;
    let command = words.rest();
    let (place, container) = store::open(globals, &id)?;
    let spec = place.spec()?;
    let process = process(globals, &options, command, spec.process().clone())?;
    let terminal = process.terminal().unwrap_or(false);
    if terminal && options.detach && options.console_socket.is_none() {
        return Err(CliError::usage(
            "a detached terminal needs --console-socket to be sent to",
        ));
    }
    let foreground = if options.detach {
        None
    } else {
        Some(Foreground::prepare()?)
    };
    let profile = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    let filter = profile.map(Filter::compile).transpose()?;
    let mut executed = container.exec(ExecOptions {
        process: &process,
        filter: filter.map(Arc::new),
        personality: spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.personality().as_ref())
            .map(|personality| personality.domain()),
        // A name, not a number, is looked up in the container.
        user: options.user.filter(|user| {
            !user
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b':')
        }),
        stdio: if terminal {
            Stdio::Terminal {
                size: foreground::terminal_size(),
            }
        } else {
            Stdio::Inherit
        },
        create_cwd: false,
        preserve_fds: options.preserve_fds,
        cgroups: options.cgroups,
        ignore_paused: options.ignore_paused,
    })?;
    if let Some(cpus) = &executed.initial_cpus {
        // runc's words, which tests look for.
        output::debug(globals, || format!("affinity: {cpus}"));
    }
    if let Some(socket) = &options.console_socket
        && let Some(master) = executed.terminal.take()
    {
        foreground::send_terminal(socket, &master)?;
    }
    if let Some(path) = &options.pid_file {
        write_pid(path, executed.pid)?;
    }
    match foreground {
        None => Ok(0),
        Some(foreground) => {
            use std::os::fd::AsFd;
            foreground.attend(executed.pidfd.as_fd(), executed.terminal.take())
        }
    }
}

/// The process: a file's, or the container's own with the options over it.
fn process(
    globals: &Globals,
    options: &Options,
    command: Vec<String>,
    own: Option<Process>,
) -> Result<Process, CliError> {
    if let Some(path) = &options.process {
        let bytes = std::fs::read(path).map_err(|error| CliError::file("read", path, error))?;
        let (mut process, warnings) =
            container::read_process(&bytes).map_err(|source| CliError::Json {
                what: "process of the runtime specification",
                path: path.clone(),
                source,
            })?;
        for warning in warnings {
            output::warn(globals, &warning);
        }
        if options.terminal {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    if command.is_empty() {
        return Err(CliError::usage("the command to execute is missing"));
    }
    let mut process = own.unwrap_or_default();
    process.set_args(Some(command));
    process.set_terminal(Some(options.terminal));
    process.set_console_size(None);
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut environment = process.env().clone().unwrap_or_default();
    for variable in &options.environment {
        // One that is there already is replaced: programs take the first of a name.
        let name = variable.split('=').next().unwrap_or_default();
        environment.retain(|other| other.split('=').next() != Some(name));
        environment.push(variable.clone());
    }
    process.set_env(Some(environment));
    if let Some(user) = &options.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
        if let Ok(uid) = uid.parse() {
            let mut new = User::default();
            new.set_uid(uid);
            new.set_gid(gid.parse().unwrap_or(0));
            process.set_user(new);
        }
    }
    if !options.groups.is_empty() {
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&options.groups);
        user.set_additional_gids(Some(groups));
        process.set_user(user);
    }
    if options.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if !options.capabilities.is_empty() {
        process.set_capabilities(Some(with_capabilities(
            process.capabilities().clone().unwrap_or_default(),
            &options.capabilities,
        )?));
    }
    Ok(process)
}

fn with_capabilities(
    mut sets: LinuxCapabilities,
    names: &[String],
) -> Result<LinuxCapabilities, CliError> {
    for name in names {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let capability: Capability = short
            .parse()
            .map_err(|_| CliError::usage(format!("unknown capability {name:?}")))?;
        let with = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        sets.set_bounding(with(sets.bounding()));
        sets.set_effective(with(sets.effective()));
        sets.set_permitted(with(sets.permitted()));
        // What is ambient must be inheritable; runc leaves the inheritable set alone.
    }
    Ok(sets)
}
