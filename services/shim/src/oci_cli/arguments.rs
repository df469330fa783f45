//! The command line, as runc's: global options, a verb, its options, its arguments.
//!
//! Options may be written `--name value`, `--name=value`, and with one dash. A parser of its own, because the Go programs
//! that call a runtime use all of these, and because it costs microseconds.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::CliError;

/// The words that are left.
#[derive(Debug)]
pub(super) struct Arguments {
    words: VecDeque<String>,
}

/// One parsed option.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flag {
    /// Without dashes.
    pub(super) name: String,
    value: Option<String>,
}

impl Arguments {
    /// The command line of this process.
    ///
    /// # Errors
    /// An argument is not UTF-8: what goes into a container's configuration is JSON.
    pub(super) fn of_process() -> Result<Self, CliError> {
        let words = std::env::args_os()
            .skip(1)
            .map(|word| {
                word.into_string()
                    .map_err(|word| CliError::usage(format!("the argument {word:?} is not UTF-8")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { words })
    }

    /// The next word if it is an option. `--` ends the options.
    pub(super) fn flag(&mut self) -> Option<Flag> {
        let word = self.words.front()?;
        if word == "--" {
            self.words.pop_front();
            return None;
        }
        let name = word
            .strip_prefix("--")
            .or_else(|| word.strip_prefix('-'))
            .filter(|name| !name.is_empty())?;
        let flag = match name.split_once('=') {
            Some((name, value)) => Flag {
                name: name.to_owned(),
                value: Some(value.to_owned()),
            },
            None => Flag {
                name: name.to_owned(),
                value: None,
            },
        };
        self.words.pop_front();
        Some(flag)
    }

    /// The value of an option that needs one.
    pub(super) fn value(&mut self, flag: &Flag) -> Result<String, CliError> {
        flag.value
            .clone()
            .or_else(|| self.words.pop_front())
            .ok_or_else(|| CliError::usage(format!("option --{} needs a value", flag.name)))
    }

    /// The value of an option that is a number.
    pub(super) fn number<T: std::str::FromStr>(&mut self, flag: &Flag) -> Result<T, CliError> {
        let value = self.value(flag)?;
        value
            .parse()
            .map_err(|_| CliError::usage(format!("--{} {value:?} is not a number", flag.name)))
    }

    /// Whether what follows the verb asks what it is.
    pub(super) fn ask_for_help(&self) -> bool {
        self.words
            .front()
            .is_some_and(|word| matches!(word.as_str(), "--help" | "-h" | "-help"))
    }

    pub(super) fn verb(&mut self) -> Option<String> {
        self.words.pop_front()
    }

    /// The next argument, which must be there.
    pub(super) fn required(&mut self, what: &str) -> Result<String, CliError> {
        self.words
            .pop_front()
            .ok_or_else(|| CliError::usage(format!("{what} is missing")))
    }

    /// The next argument, if there is one.
    pub(super) fn optional(&mut self) -> Option<String> {
        self.words.pop_front()
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> Vec<String> {
        self.words.into()
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), CliError> {
        match self.words.front() {
            None => Ok(()),
            Some(word) => Err(CliError::usage(format!("unexpected argument {word:?}"))),
        }
    }
}

impl Flag {
    /// Whether an option without a value is on: `--flag`, `--flag=true`, `--flag=false`.
    pub(super) fn is_on(&self) -> bool {
        self.value
            .as_deref()
            .is_none_or(|value| !matches!(value, "false" | "0"))
    }

    pub(super) fn unknown(&self, verb: &str) -> CliError {
        CliError::usage(format!("unknown option --{} for {verb}", self.name))
    }
}

/// What comes before the verb.
#[derive(Debug)]
pub(super) struct Globals {
    pub(super) root: PathBuf,
    pub(super) log: Option<PathBuf>,
    pub(super) log_json: bool,
    pub(super) debug: bool,
    pub(super) help: bool,
    pub(super) version: bool,
}

impl Default for Globals {
    fn default() -> Self {
        Self {
            root: "/run/gantry-oci".into(),
            log: None,
            log_json: false,
            debug: false,
            help: false,
            version: false,
        }
    }
}

impl Globals {
    pub(super) fn take(words: &mut Arguments) -> Result<Self, CliError> {
        let mut globals = Self::default();
        while let Some(flag) = words.flag() {
            match flag.name.as_str() {
                "root" => globals.root = words.value(&flag)?.into(),
                "log" => {
                    let value = words.value(&flag)?;
                    globals.log = log_file(&value)?;
                }
                "log-format" => match words.value(&flag)?.as_str() {
                    "json" => globals.log_json = true,
                    "text" | "" => {}
                    other => {
                        return Err(CliError::usage(format!(
                            "--log-format {other:?} is neither text nor json"
                        )));
                    }
                },
                // The cgroup file system is always driven directly; a systemd-style path becomes directories.
                "cgroup-manager" | "criu" | "rootless" | "log-level" => {
                    words.value(&flag)?;
                }
                "debug" => globals.debug = flag.is_on(),
                "systemd-cgroup" => {}
                "help" | "h" => globals.help = true,
                "version" | "v" => globals.version = true,
                _ => {
                    return Err(CliError::usage(format!("unknown option --{}", flag.name)));
                }
            }
        }
        Ok(globals)
    }
}

/// The log's file: a path, or crun's way of naming it, "file:PATH".
fn log_file(value: &str) -> Result<Option<PathBuf>, CliError> {
    let path = match value.split_once(':') {
        Some(("file", path)) => path,
        Some((kind, _)) if kind.bytes().all(|byte| byte.is_ascii_lowercase()) => {
            return Err(CliError::usage(format!(
                "--log {value:?}: the log goes to a file; give a path, or file:PATH"
            )));
        }
        _ => value,
    };
    Ok((!path.is_empty()).then(|| path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Arguments {
        Arguments {
            words: line.split(' ').map(str::to_owned).collect(),
        }
    }

    #[test]
    fn options_may_be_written_in_every_way() {
        let mut words = words("--root /a --log=/b -log-format json --systemd-cgroup create -x id");
        let globals = Globals::take(&mut words).unwrap();
        assert_eq!(globals.root, PathBuf::from("/a"));
        assert_eq!(globals.log, Some(PathBuf::from("/b")));
        assert!(globals.log_json);
        assert_eq!(words.verb().as_deref(), Some("create"));
        assert_eq!(words.flag().unwrap().name, "x");
        assert_eq!(words.flag(), None);
        assert_eq!(words.required("id").unwrap(), "id");
        words.end().unwrap();
    }

    #[test]
    fn the_log_is_a_file() {
        for good in ["/tmp/a:b", "file:/tmp/a:b", "a", "./a:b"] {
            assert!(log_file(good).unwrap().is_some(), "{good}");
        }
        assert_eq!(log_file("").unwrap(), None);
        assert!(log_file("syslog:me").is_err());
    }

    #[test]
    fn two_dashes_end_the_options() {
        let mut words = words("-- -not-an-option");
        assert_eq!(words.flag(), None);
        assert_eq!(words.rest(), ["-not-an-option"]);
    }

    #[test]
    fn a_missing_value_is_an_error() {
        assert!(Globals::take(&mut words("--root")).is_err());
        assert!(Globals::take(&mut words("--rubbish")).is_err());
    }
}
