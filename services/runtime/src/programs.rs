//! Other OCI runtimes: which program a name means.
//!
//! In this order: `gantry` (and no name) is the shim itself; a name of the table `[runtime.runtimes]`; a program of that
//! name in this service's PATH, so that `runc` works where it is installed; an absolute path.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use gantry_proto::shim::v1::Runtime as Program;

use crate::error::{Error, Result};
use crate::settings::RuntimeProgram;

/// The shim's own.
pub const BUILT_IN: &str = "gantry";

/// Longest name or path.
const NAME_MAX: usize = 4096;

/// The runtimes that there are.
#[derive(Debug, Default)]
pub struct Programs {
    table: BTreeMap<String, RuntimeProgram>,
    path: OsString,
}

impl Programs {
    /// Those of the configuration, and what is in `path`, directories with colons between them.
    ///
    /// # Errors
    /// A name of the table cannot be one.
    pub fn new(table: BTreeMap<String, RuntimeProgram>, path: OsString) -> Result<Self> {
        for (name, program) in &table {
            let problem = if name == BUILT_IN {
                "is the built-in runtime; give this one another name"
            } else if !is_name(name) {
                "is no name: letters, digits, '_', '.' and '-'"
            } else if !program.path.is_absolute() && !program.path.to_str().is_some_and(is_name) {
                "has a path that is neither absolute nor a program's name"
            } else {
                continue;
            };
            return Err(Error::Invalid {
                field: "runtime.runtimes",
                problem: format!("{name:?} {problem}"),
            });
        }
        Ok(Self { table, path })
    }

    /// The program of a name. `None`: the shim itself.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<Option<Program>> {
        if name.is_empty() || name == BUILT_IN {
            return Ok(None);
        }
        let unknown = |why: String| Error::UnknownRuntime {
            name: name.chars().take(NAME_MAX).collect(),
            why,
        };
        let (wanted, args) = match self.table.get(name) {
            Some(program) => (program.path.as_path(), program.args.clone()),
            None => (Path::new(name), Vec::new()),
        };
        let path = if wanted.is_absolute() {
            check(wanted).map_err(unknown)?;
            wanted.to_owned()
        } else if wanted.to_str().is_some_and(is_name) {
            self.look_up(wanted)
                .ok_or_else(|| unknown(self.choices(wanted)))?
        } else {
            return Err(unknown(
                "give a name, or an absolute path of a program".to_owned(),
            ));
        };
        let text = path.into_os_string().into_string();
        let path = text.map_err(|path| unknown(format!("{path:?} is not UTF-8")))?;
        Ok(Some(Program {
            name: name.to_owned(),
            path,
            args,
        }))
    }

    fn look_up(&self, name: &Path) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(name))
            .find(|candidate| check(candidate).is_ok())
    }

    fn choices(&self, wanted: &Path) -> String {
        let known = self.table.keys().map(String::as_str);
        let known: Vec<&str> = [BUILT_IN].into_iter().chain(known).collect();
        format!(
            "there is {}, and no program {} in PATH",
            known.join(", "),
            wanted.display()
        )
    }
}

/// Whether it can be executed, or why not.
fn check(program: &Path) -> std::result::Result<(), String> {
    let metadata = fs::metadata(program).map_err(|error| format!("{program:?}: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{program:?} is not a file"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("{program:?} is not executable"));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    name.len() <= 255
        && name.bytes().all(good)
        && name.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &Path, args: &[&str]) -> RuntimeProgram {
        RuntimeProgram {
            path: path.to_owned(),
            args: args.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    fn executable(path: &Path, mode: u32) {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_name_is_looked_up_in_the_table_then_in_path() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        executable(&place("runc"), 0o755);
        executable(&place("mine"), 0o755);
        executable(&place("plain"), 0o644);
        let table = BTreeMap::from([
            ("other".to_owned(), program(&place("mine"), &["--debug"])),
            ("short".to_owned(), program(Path::new("mine"), &[])),
        ]);
        let programs = Programs::new(table, directory.path().into()).unwrap();
        let found = |name: &str| programs.find(name).unwrap().map(|found| found.path);
        let path = |name: &str| Some(place(name).to_str().unwrap().to_owned());
        assert_eq!(found(""), None);
        assert_eq!(found("gantry"), None);
        assert_eq!(found("runc"), path("runc"));
        assert_eq!(found("short"), path("mine"));
        assert_eq!(found(place("mine").to_str().unwrap()), path("mine"));
        let other = programs.find("other").unwrap().unwrap();
        assert_eq!(
            (other.name.as_str(), other.args.as_slice()),
            ("other", &["--debug".to_owned()][..])
        );
        for unknown in [
            "nosuch",
            "plain",
            "../mine",
            "./mine",
            "/",
            "/nosuch",
            place("plain").to_str().unwrap(),
            "..",
        ] {
            let error = programs.find(unknown).unwrap_err();
            assert!(
                matches!(error, Error::UnknownRuntime { .. }),
                "{unknown}: {error}"
            );
        }
        let error = programs.find("nosuch").unwrap_err().to_string();
        for word in ["nosuch", "gantry", "other", "short"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_table_with_the_built_in_name_or_a_relative_path_is_refused() {
        for (name, path) in [
            ("gantry", "/bin/true"),
            ("a b", "/bin/true"),
            ("a", "bin/true"),
        ] {
            let table = BTreeMap::from([(name.to_owned(), program(Path::new(path), &[]))]);
            let error = Programs::new(table, OsString::new()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
