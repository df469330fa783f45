//! `gantry-oci`: the OCI runtime as a command with runc's interface, for Docker, containerd, Podman and test suites.
//!
//! A verb is a file. What must outlive an invocation is in a directory per container:
//!
//! ```text
//! <root>/<id>/state.json    the Record
//! <root>/<id>/config.json   the spec as it was at `create`, for `exec`
//! <root>/<id>/start.sock    where init waits; `start` removes it
//! ```
//! `<root>` is /run/gantry-oci, or `--root`. The directory is made first and exclusively, which is what makes an id unique.

mod arguments;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
mod kill;
mod list;
mod output;
mod pause;
mod ps;
mod spec;
mod start;
mod state;
mod store;
mod update;

use std::process::ExitCode;

pub use error::CliError;

use crate::container::Error;
use arguments::{Arguments, Globals};

const USAGE: &str = "\
Usage: gantry-oci [global options] VERB [options] [arguments]

  create [-b BUNDLE] [--console-socket S] [--pid-file F] [--preserve-fds N] [--no-pivot] ID
  start ID
  run    [-b BUNDLE] [-d] [--keep] [--console-socket S] [--pid-file F] [--preserve-fds N] [--no-pivot] ID
  state ID
  kill [-a] ID [SIGNAL]
  delete [-f] ID
  exec [-d] [-t] [-u UID[:GID]] [-e K=V] [--cwd D] [--cap C] [-p process.json] ID [COMMAND ...]
  ps [-f table|json] ID [ps options]
  list [-q] [-f table|json]
  pause ID
  resume ID
  update [-r resources.json] [--memory N] [--cpu-quota N] [--pids-limit N] ... ID
  events [--stats] [--interval D] ID
  features
  spec [-b BUNDLE] [--rootless]

Global options: --root DIR  --log FILE  --log-format text|json  --debug  --systemd-cgroup  --cgroup-manager M
";

/// The usage of one verb.
fn usage_of(verb: &str) -> Option<String> {
    USAGE
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .find(|line| line.split(' ').next() == Some(verb))
        .map(|line| format!("Usage: gantry-oci [global options] {line}\n"))
}

/// Runs the command line. The exit code is the program's own for `run` and `exec`, else 0, or 1 after an error.
pub fn main() -> ExitCode {
    let read = Arguments::of_process().and_then(|mut words| {
        let globals = Globals::take(&mut words)?;
        Ok((globals, words))
    });
    let (globals, words) = match read {
        Ok(read) => read,
        Err(error) => return output::fail(&Globals::default(), &error),
    };
    match dispatch(&globals, words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => output::fail(&globals, &error),
    }
}

fn dispatch(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let Some(verb) = words.verb() else {
        return if globals.help || !globals.version {
            output::print(USAGE)
        } else {
            output::print(&features::version())
        };
    };
    if words.ask_for_help()
        && let Some(usage) = usage_of(&verb)
    {
        return output::print(&usage);
    }
    match verb.as_str() {
        "create" => create::create(globals, words),
        "run" => create::run(globals, words),
        "start" => start::start(globals, words),
        "state" => state::state(globals, words),
        "kill" => kill::kill(globals, words),
        "delete" => delete::delete(globals, words),
        "exec" => exec::exec(globals, words),
        "ps" => ps::ps(globals, words),
        "list" => list::list(globals, words),
        "pause" => pause::pause(globals, words),
        "resume" => pause::resume(globals, words),
        "update" => update::update(globals, words),
        "events" => events::events(globals, words),
        "features" => features::features(words),
        "spec" => spec::spec(words),
        "checkpoint" | "restore" => Err(Error::Unsupported {
            what: verb,
            why: "this runtime does not save the state of processes; \
                  runc and crun can, with CRIU"
                .to_owned(),
        }
        .into()),
        "help" => output::print(USAGE),
        _ => Err(CliError::usage(format!(
            "unknown verb {verb:?}; `gantry-oci help` lists them"
        ))),
    }
}
