//! The command line: global options and one verb.

use std::ffi::OsString;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};

use crate::exit::REFUSED;
use crate::operands;
use crate::parse::ParseError;
use crate::verbs::Verb;

/// The Gantry container engine
#[derive(Debug, Parser)]
#[command(
    name = "gantry",
    version,
    max_term_width = 100,
    args_override_self = true
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Use the engine that keeps all its files below this directory
    #[arg(
        long,
        env = "GANTRY_ROOT",
        value_name = "DIR",
        global = true,
        hide_env_values = true
    )]
    pub(crate) root: Option<PathBuf>,
    /// Use the engine that listens on this socket: unix:///PATH
    #[arg(
        short = 'H',
        long,
        env = "GANTRY_HOST",
        value_name = "SOCKET",
        hide_env_values = true
    )]
    pub(crate) host: Option<String>,
}

/// A command line that cannot be understood, or that asks for help.
#[derive(Debug)]
pub(crate) struct Refusal {
    error: Box<clap::Error>,
    /// What is said of operands that are missing or too many.
    operands: Option<String>,
    /// What is said of an argument that is not text.
    not_utf8: Option<String>,
    /// The code where a value is refused that Docker lets its engine judge.
    refused: u8,
}

/// A command line that was understood.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) options: Options,
    pub(crate) verb: Verb,
    /// "run", "image ls": for the trace.
    pub(crate) name: String,
}

/// Reads the command line.
pub(crate) fn read(arguments: impl Iterator<Item = OsString>) -> Result<Request, Refusal> {
    // Not built: clap builds what is on the way to the verb, and the others cost a
    // millisecond.
    let command = Arguments::command();
    let arguments = operands::normalized(&command, arguments.collect());
    let refused = |error: clap::Error| Refusal::of(error, &arguments);
    let matches = command.try_get_matches_from(&arguments).map_err(refused)?;
    let mut words = Vec::new();
    let mut rest = &matches;
    while let Some((word, below)) = rest.subcommand() {
        words.push(word);
        rest = below;
    }
    let name = words.join(" ");
    let parsed = Arguments::from_arg_matches(&matches).map_err(refused)?;
    Ok(Request {
        options: parsed.options,
        verb: parsed.verb,
        name,
    })
}

/// Whether operands are missing or too many, and no flag is wrong.
fn is_of_operands(error: &clap::Error) -> bool {
    let named = |is: fn(&str) -> bool| match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => is(name),
        Some(ContextValue::Strings(names)) => names.iter().all(|name| is(name)),
        _ => false,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => named(|name| !name.starts_with('-')),
        ErrorKind::MissingRequiredArgument => named(|name| name.starts_with(['<', '['])),
        _ => false,
    }
}

/// Names the first argument that is not UTF-8. Only paths of this machine may be
/// that: what goes to the engine is text.
fn not_utf8(arguments: &[OsString]) -> Option<String> {
    let argument = arguments
        .iter()
        .find(|argument| argument.to_str().is_none())?;
    Some(format!(
        "the argument {argument:?} is not UTF-8, and the engine's interface takes text; nothing was done"
    ))
}

impl Refusal {
    fn of(error: clap::Error, arguments: &[OsString]) -> Self {
        if error.kind() == ErrorKind::InvalidUtf8 {
            return Self {
                operands: None,
                not_utf8: not_utf8(arguments),
                error: Box::new(error),
                refused: REFUSED,
            };
        }
        let root = Arguments::command();
        let lineage = operands::verb(&root, arguments);
        let verb = &lineage[lineage.len() - 1];
        let operands = is_of_operands(&error).then(|| {
            let words: Vec<&str> = lineage.iter().map(|command| command.get_name()).collect();
            let (words, count) = (words.join(" "), operands::count_of(verb));
            format!("'{words}' {count}; see `{words} --help`")
        });
        Self {
            error: Box::new(error),
            operands,
            not_utf8: None,
            refused: if verb.get_name() == "run" { REFUSED } else { 1 },
        }
    }

    /// Whether the value is one that Docker lets its engine judge.
    fn is_of_the_engine(&self) -> bool {
        let source = std::error::Error::source(&*self.error);
        let source = source.and_then(|source| source.downcast_ref::<ParseError>());
        source.is_some_and(ParseError::is_refusal)
    }

    /// Help goes out as it is; an error is one line. Codes as Docker's: 125 for
    /// a wrong flag, 1 for operands that are missing or too many.
    pub(crate) fn report(&self) -> ExitCode {
        let error = &self.error;
        if let Some(line) = &self.operands {
            eprintln!("gantry: {line}");
            return ExitCode::FAILURE;
        }
        if let Some(line) = &self.not_utf8 {
            eprintln!("gantry: {line}");
            return ExitCode::from(REFUSED);
        }
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let _nobody_reads = error.print();
                ExitCode::SUCCESS
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let _nobody_reads = error.print();
                ExitCode::FAILURE
            }
            kind => {
                eprintln!("gantry: {}", self.line());
                match kind {
                    _ if self.is_of_the_engine() => ExitCode::from(self.refused),
                    ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::InvalidSubcommand => ExitCode::FAILURE,
                    _ => ExitCode::from(REFUSED),
                }
            }
        }
    }

    /// Clap's error without its usage and colours.
    fn line(&self) -> String {
        let text = self.error.render().to_string();
        let mut parts = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.starts_with("Usage:") || line.starts_with("For more information") {
                break;
            }
            if !line.is_empty() {
                parts.push(line.strip_prefix("error: ").unwrap_or(line));
            }
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_value_that_the_engine_would_refuse_is_told_from_a_wrong_flag() {
        let of_the_engine = |line: &str| {
            let arguments = line.split(' ').map(OsString::from);
            read(arguments).unwrap_err().is_of_the_engine()
        };
        for refused in [
            "gantry create --restart bogus image",
            "gantry create -v /a:/b:bogus image",
            "gantry create --mount type=bogus,dst=/a image",
            "gantry update --restart always:3 one",
            "gantry logs --since bogus one",
            "gantry port one x",
        ] {
            assert!(of_the_engine(refused), "{refused}");
        }
        for wrong in [
            "gantry create -v :/a image",
            "gantry create --mount bogus image",
            "gantry create --memory x image",
            "gantry logs --bogus one",
        ] {
            assert!(!of_the_engine(wrong), "{wrong}");
        }
    }

    #[test]
    fn an_argument_that_is_not_utf_8_is_refused_by_its_name() {
        use std::os::unix::ffi::OsStringExt as _;
        for at in 2..5 {
            let mut line: Vec<OsString> = ["gantry", "run", "image", "echo", "x"]
                .map(OsString::from)
                .into();
            line[at] = OsString::from_vec(b"bad\xff".to_vec());
            let refusal = read(line.into_iter()).unwrap_err();
            let said = refusal.not_utf8.unwrap();
            assert!(said.contains(r#""bad\xFF""#), "{said}");
        }
    }

    #[test]
    fn the_last_of_a_flag_counts_as_in_docker_and_lists_grow() {
        let line = "gantry run -i -ti --name a --name b -e A=1 -e B=2 image -i";
        let matches = Arguments::command().get_matches_from(line.split(' '));
        let (_, run) = matches.subcommand().unwrap();
        assert_eq!(run.get_one::<String>("name").unwrap(), "b");
        assert_eq!(run.get_many::<String>("env").unwrap().count(), 2);
        let line = "gantry rm a -f b -f";
        let matches = Arguments::command().get_matches_from(line.split(' '));
        let (_, rm) = matches.subcommand().unwrap();
        assert_eq!(rm.get_raw("containers").unwrap().len(), 2);
    }
}
