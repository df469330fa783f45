//! `create` and `run`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::foreground::{self, Foreground};
use super::output;
use super::store::{self, Place};
use crate::container::{self, Container, CreateOptions, Gate, Stdio};

struct Options {
    bundle: PathBuf,
    config: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    preserve_fds: u32,
    /// Sockets that the caller passes as systemd does, first of those that are preserved.
    activated: u32,
    no_pivot: bool,
    no_new_keyring: bool,
    detach: bool,
    keep: bool,
    id: String,
}

fn parse(verb: &str, mut words: Arguments) -> Result<Options, CliError> {
    let mut options = Options {
        bundle: ".".into(),
        config: None,
        console_socket: None,
        pid_file: None,
        preserve_fds: 0,
        activated: 0,
        no_pivot: false,
        no_new_keyring: false,
        detach: false,
        keep: false,
        id: String::new(),
    };
    loop {
        while let Some(flag) = words.flag() {
            match flag.name.as_str() {
                "bundle" | "b" => options.bundle = words.value(&flag)?.into(),
                // As crun has it: another file than the bundle's, from the working directory on.
                "config" | "f" => options.config = Some(words.value(&flag)?.into()),
                "console-socket" => options.console_socket = Some(words.value(&flag)?.into()),
                "pid-file" => options.pid_file = Some(words.value(&flag)?.into()),
                "preserve-fds" => options.preserve_fds = words.number(&flag)?,
                "no-pivot" => options.no_pivot = flag.is_on(),
                "no-new-keyring" => options.no_new_keyring = flag.is_on(),
                // The shim above is the subreaper, or the caller.
                "no-subreaper" => {}
                "pidfd-socket" => {
                    words.value(&flag)?;
                }
                "detach" | "d" if verb == "run" => options.detach = flag.is_on(),
                "keep" if verb == "run" => options.keep = flag.is_on(),
                _ => return Err(flag.unknown(verb)),
            }
        }
        // Options are understood behind the id too.
        match words.optional() {
            Some(id) if options.id.is_empty() => options.id = id,
            Some(extra) => {
                return Err(CliError::usage(format!("unexpected argument {extra:?}")));
            }
            None => break,
        }
    }
    if options.id.is_empty() {
        return Err(CliError::usage("the container's id is missing"));
    }
    options.bundle = std::fs::canonicalize(&options.bundle)
        .map_err(|error| CliError::file("enter bundle", &options.bundle, error))?;
    if let Ok(count) = std::env::var("LISTEN_FDS")
        && let Ok(count) = count.parse::<u32>()
    {
        options.activated = count;
        options.preserve_fds = options.preserve_fds.saturating_add(count);
    }
    Ok(options)
}

/// Tells the program of the sockets: in a PID namespace of its own it is process 1.
fn pass_activation(spec: &mut Spec, count: u32) {
    let Some(process) = spec.process_mut() else {
        return;
    };
    let mut environment = process.env().clone().unwrap_or_default();
    environment.push(format!("LISTEN_FDS={count}"));
    environment.push("LISTEN_PID=1".to_owned());
    process.set_env(Some(environment));
}

/// `create`.
pub(super) fn create(globals: &Globals, words: Arguments) -> Result<u8, CliError> {
    let options = parse("create", words)?;
    let (_, _, terminal) = make(globals, &options, true)?;
    drop(terminal);
    Ok(0)
}

/// `run`: create, start, and unless detached wait and delete.
pub(super) fn run(globals: &Globals, words: Arguments) -> Result<u8, CliError> {
    let options = parse("run", words)?;
    let foreground = if options.detach {
        None
    } else {
        Some(Foreground::prepare()?)
    };
    let (place, mut container, terminal) = make(globals, &options, false)?;
    if let Err(error) = container.start() {
        let _ = container.delete();
        let _ = container.reap();
        place.remove()?;
        return Err(error.into());
    }
    let Some(foreground) = foreground else {
        return Ok(0);
    };
    let Some(pidfd) = container.pidfd() else {
        return Ok(0);
    };
    let code = foreground.attend(pidfd, terminal)?;
    if !options.keep {
        if let Some(warning) = container.delete()? {
            output::warn(globals, &warning.to_string());
        }
        place.remove()?;
    }
    Ok(code)
}

/// Makes the container. The terminal's master comes back where nobody else takes it.
fn make(
    globals: &Globals,
    options: &Options,
    gated: bool,
) -> Result<(Place, Container, Option<OwnedFd>), CliError> {
    let config = match &options.config {
        Some(path) => path.clone(),
        None => options.bundle.join("config.json"),
    };
    let mut config = store::read_spec(&config)?;
    for warning in &config.warnings {
        output::warn(globals, warning);
    }
    if options.activated > 0 {
        pass_activation(&mut config.spec, options.activated);
    }
    let spec = &config.spec;
    let terminal = spec
        .process()
        .as_ref()
        .and_then(oci_spec::runtime::Process::terminal)
        .unwrap_or(false);
    if terminal && options.console_socket.is_none() && (gated || options.detach) {
        return Err(CliError::usage(
            "process.terminal is true: --console-socket must say where to send the terminal",
        ));
    }
    if !terminal && options.console_socket.is_some() {
        return Err(CliError::usage(
            "--console-socket is given, but process.terminal is false",
        ));
    }
    let place = Place::make(globals, &options.id)?;
    let made = (|| {
        let mut wanted = CreateOptions::new(&options.id, &options.bundle, spec);
        if terminal {
            wanted.stdio = Stdio::Terminal {
                size: foreground::terminal_size(),
            };
        }
        if gated {
            wanted.gate = Gate::Socket(place.gate());
        }
        // As runc and crun do.
        wanted.create_cwd = true;
        wanted.preserve_fds = options.preserve_fds;
        wanted.no_pivot = options.no_pivot;
        wanted.no_new_keyring = options.no_new_keyring;
        let mut created = container::create(wanted)?;
        let finished = (|| {
            if let Some(socket) = &options.console_socket
                && let Some(master) = created.terminal.take()
            {
                foreground::send_terminal(socket, &master)?;
            }
            if let Some(path) = &options.pid_file {
                write_pid(path, created.container.pid())?;
            }
            place.save(created.container.record(), &config.bytes)
        })();
        if let Err(error) = finished {
            if let Err(left) = created.abandon() {
                output::warn(globals, &CliError::from(left).line());
            }
            return Err(error);
        }
        if std::env::var_os("GANTRY_OCI_TIMINGS").is_some() {
            for timing in &created.timings {
                eprintln!(
                    "{:>8.1} us  {:>8.1} us  {}",
                    timing.start_ns as f64 / 1000.0,
                    timing.duration_ns as f64 / 1000.0,
                    timing.step
                );
            }
        }
        Ok((created.container, created.terminal))
    })();
    match made {
        Ok((container, terminal)) => Ok((place, container, terminal)),
        Err(error) => {
            let _ = place.remove();
            Err(error)
        }
    }
}

/// Writes a PID file, in one step for whoever waits for it.
pub(super) fn write_pid(path: &Path, pid: i32) -> Result<(), CliError> {
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(path.file_name().unwrap_or_default());
    let new = path.with_file_name(hidden);
    std::fs::write(&new, pid.to_string())
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|error| CliError::file("write", path, error))
}
