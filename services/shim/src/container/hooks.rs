//! Hooks: programs that the spec wants run at certain moments, with the container's state on standard input.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Error, Result};
use super::record::{Record, Status};

/// The state as the specification writes it.
pub(super) fn state(record: &Record, status: Status, pid: i32) -> String {
    let mut state = serde_json::json!({
        "ociVersion": super::OCI_VERSION,
        "id": record.id,
        "status": status.to_string(),
        "bundle": record.bundle,
    });
    if pid > 0 {
        state["pid"] = pid.into();
    }
    if !record.annotations.is_empty() {
        state["annotations"] = serde_json::json!(record.annotations);
    }
    state.to_string()
}

/// Runs them one after the other; the first failure ends it.
pub(super) fn run(kind: &str, hooks: &[Hook], state: &str, directory: Option<&Path>) -> Result<()> {
    hooks
        .iter()
        .try_for_each(|hook| run_one(kind, hook, state, directory, None))
}

/// Runs them inside the container, where a hook without an environment of its own has the program's.
pub(super) fn run_inside(
    kind: &str,
    hooks: &[Hook],
    state: &str,
    environment: &[String],
) -> Result<()> {
    hooks
        .iter()
        .try_for_each(|hook| run_one(kind, hook, state, None, Some(environment)))
}

/// Runs all of them, whatever happens to one; the first failure comes back.
pub(super) fn run_each(
    kind: &str,
    hooks: &[Hook],
    state: &str,
    directory: Option<&Path>,
) -> Result<()> {
    hooks
        .iter()
        .map(|hook| run_one(kind, hook, state, directory, None))
        .fold(Ok(()), Result::and)
}

fn run_one(
    kind: &str,
    hook: &Hook,
    state: &str,
    directory: Option<&Path>,
    environment: Option<&[String]>,
) -> Result<()> {
    let fail = |problem: String| Error::Hook {
        kind: kind.to_owned(),
        path: hook.path().clone(),
        problem,
    };
    let broken = |error: std::io::Error| fail(format!("could not be run: {error}"));
    if !hook.path().is_absolute() {
        return Err(fail("is not an absolute path".to_owned()));
    }
    // A file and not a pipe: a child that the hook leaves behind must not make us wait.
    let mut complaint = std::fs::File::from(
        rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC).map_err(|e| broken(e.into()))?,
    );
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(|args| args.split_first()) {
        command.arg0(name).args(rest);
    }
    // As runc and crun do: a hook without an environment of its own has the runtime's.
    if let Some(environment) = hook.env().as_deref().or(environment) {
        command.env_clear();
        for variable in environment {
            if let Some((name, value)) = variable.split_once('=') {
                command.env(name, value);
            }
        }
    }
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(complaint.try_clone().map_err(broken)?);
    // `gantry-oci run` blocks signals before it makes the container.
    gantry_sys::spawn::with_defaults(&mut command);
    let mut child = command.spawn().map_err(broken)?;
    let deadline = hook
        .timeout()
        .filter(|timeout| *timeout > 0)
        .map(|timeout| Instant::now() + Duration::from_secs(timeout as u64));
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it.
        let _ = stdin.write_all(state.as_bytes());
    }
    if let Some(deadline) = deadline
        && !ends_by(child.id() as i32, deadline)
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(fail(format!(
            "timed out after {} s",
            hook.timeout().unwrap_or_default()
        )));
    }
    let status = child.wait().map_err(broken)?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let _ = complaint.seek(SeekFrom::Start(0));
    let _ = complaint.take(4096).read_to_string(&mut text);
    Err(fail(describe(status, text.trim())))
}

fn describe(status: ExitStatus, complaint: &str) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    };
    if complaint.is_empty() {
        how
    } else {
        format!("{how}: {complaint}")
    }
}

fn ends_by(pid: i32, deadline: Instant) -> bool {
    let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    else {
        return true;
    };
    loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return false;
        };
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let fd = pidfd.as_fd();
        if matches!(
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)),
            Ok(1..)
        ) {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(json: &str) -> Vec<Hook> {
        vec![serde_json::from_str(json).unwrap()]
    }

    #[test]
    fn a_failing_hook_is_told_with_its_complaint() {
        let hooks = hook(r#"{"path":"/bin/sh","args":["sh","-c","echo no luck >&2; exit 3"]}"#);
        let error = run("prestart", &hooks, "{}", None).unwrap_err().to_string();
        assert_eq!(
            error,
            r#"prestart hook "/bin/sh" exited with status 3: no luck"#
        );
    }

    #[test]
    fn a_hook_that_hangs_is_ended() {
        let hooks = hook(r#"{"path":"/bin/sleep","args":["sleep","100"],"timeout":1}"#);
        let error = run("prestart", &hooks, "{}", None).unwrap_err().to_string();
        assert!(error.ends_with("timed out after 1 s"), "{error}");
    }

    #[test]
    fn a_hook_has_its_own_environment_or_the_runtimes() {
        let path = |env: &str| {
            hook(&format!(
                r#"{{"path":"/bin/sh","args":["sh","-c","test \"$CARGO_PKG_NAME\" = gantry-shim"]{env}}}"#
            ))
        };
        run("prestart", &path(""), "{}", None).unwrap();
        assert!(run("prestart", &path(r#","env":["A=B"]"#), "{}", None).is_err());
    }

    #[test]
    fn the_state_is_on_standard_input() {
        let hooks = hook(r#"{"path":"/bin/sh","args":["sh","-c","grep -q needle"]}"#);
        run("prestart", &hooks, r#"{"id":"needle"}"#, None).unwrap();
        assert!(run("prestart", &hooks, "{}", None).is_err());
    }
}
