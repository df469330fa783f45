//! Finding and executing the program. The error says whether it is absent (127) or can not be executed (126).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Access, AtFlags, CWD};

use super::context::During;
use super::error::{Error, ExecFailure, Result};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Strings for execve(2).
pub(super) fn c_strings(strings: &[String], field: &str) -> Result<Vec<CString>> {
    strings
        .iter()
        .map(|string| {
            CString::new(string.as_bytes())
                .map_err(|_| Error::invalid(field, format!("{string:?} contains a NUL character")))
        })
        .collect()
}

/// The program's path, looked for along PATH as the user who will execute it. The root and the working directory are
/// those of the container already.
pub(super) fn find(program: &str, environment: &[String]) -> Result<CString> {
    let refuse = |failure, errno| Error::Exec {
        program: program.to_owned(),
        failure,
        source: io::Error::from_raw_os_error(errno),
    };
    if program.is_empty() {
        return Err(refuse(ExecFailure::NotFound, libc::ENOENT));
    }
    let c_path = |path: &[u8]| CString::new(path).during("find program", program);
    if program.contains('/') {
        let path = c_path(program.as_bytes())?;
        return match judge(&path) {
            Ok(()) => Ok(path),
            Err(errno) => Err(refuse(failure_of(errno), errno)),
        };
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for directory in path.split(':') {
        // An empty entry is the working directory.
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = c_path(format!("{directory}/{program}").as_bytes())?;
        match judge(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(errno) if failure_of(errno) == ExecFailure::NotExecutable => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied {
        refuse(ExecFailure::NotExecutable, libc::EACCES)
    } else {
        refuse(ExecFailure::NotFound, libc::ENOENT)
    })
}

/// Whether the present user may execute a file, or the errno why not.
fn judge(path: &CString) -> std::result::Result<(), i32> {
    let metadata = std::fs::metadata(OsStr::from_bytes(path.as_bytes()))
        .map_err(|error| error.raw_os_error().unwrap_or(libc::ENOENT))?;
    if metadata.is_dir() {
        return Err(libc::EISDIR);
    }
    // Root may execute only what somebody may.
    if metadata.mode() & 0o111 == 0 {
        return Err(libc::EACCES);
    }
    rustix::fs::accessat(CWD, path.as_c_str(), Access::EXEC_OK, AtFlags::EACCESS).or_else(|error| {
        // The kernel before 5.8 has no flags here; execve will have the last word.
        if error == rustix::io::Errno::NOSYS {
            Ok(())
        } else {
            Err(error.raw_os_error())
        }
    })
}

fn failure_of(errno: i32) -> ExecFailure {
    match errno {
        libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ELOOP => ExecFailure::NotFound,
        _ => ExecFailure::NotExecutable,
    }
}

/// Executes it. Returns only with the failure.
pub(super) fn execute(
    program: &str,
    path: &CString,
    arguments: &[CString],
    environment: &[CString],
) -> Error {
    let errno = match nix::unistd::execve(path, arguments, environment) {
        Err(errno) => errno as i32,
        Ok(never) => match never {},
    };
    refused(program, io::Error::from_raw_os_error(errno))
}

/// The failure to execute a program that was found.
pub(super) fn refused(program: &str, source: io::Error) -> Error {
    Error::Exec {
        program: program.to_owned(),
        // The file was there a moment ago: what is absent is its interpreter.
        failure: failure_of(source.raw_os_error().unwrap_or(libc::EIO)),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(program: &str, path: &str) -> Option<i32> {
        find(program, &[format!("PATH={path}")])
            .err()
            .map(|error| error.exit_code())
    }

    #[test]
    fn what_is_absent_is_told_from_what_is_not_executable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        std::fs::write(directory.path().join("data"), "x").unwrap();
        std::fs::create_dir(directory.path().join("dir")).unwrap();
        assert_eq!(failure("absent", path), Some(127));
        assert_eq!(failure("data", path), Some(126));
        assert_eq!(failure("dir", path), Some(126));
        assert_eq!(failure(&format!("{path}/absent"), ""), Some(127));
        assert_eq!(failure(&format!("{path}/dir"), ""), Some(126));
        assert_eq!(failure("", path), Some(127));
        assert_eq!(failure("sh", &format!("{path}:/bin")), None);
    }
}
