//! Flags after IMAGE (or CONTAINER, for `exec`) belong to the command.
//!
//! Docker's parser stops at the first operand of some verbs: `run -it debian ls
//! -l` runs `ls -l`, whatever flags `run` has. Clap would look at `-l` first, so
//! the end of the options is marked with `--` before clap sees the arguments.
//! Its switches may have a value, too: `--rm=false`.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

/// Verbs whose first operand ends their options: of containers only, where what
/// follows is a command, or what `ps` is told.
const VERBS: [&str; 4] = ["create", "exec", "run", "top"];

fn takes_a_command(lineage: &[Cow<'_, Command>]) -> bool {
    let [.., noun, verb] = lineage else {
        return false;
    };
    let of_containers = lineage.len() == 2 || noun.get_name() == "container";
    of_containers && VERBS.contains(&verb.get_name())
}

/// `arguments` (the program's name first) as clap is to see them: with `--`
/// after the first operand of a verb in [`VERBS`], and without the values that
/// Docker's switches may have (`--rm=false`).
pub(crate) fn normalized(root: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let mut lineage = vec![Cow::Borrowed(root)];
    let mut seen = Vec::with_capacity(arguments.len() + 1);
    let mut rest = arguments.into_iter();
    seen.extend(rest.next());
    while let Some(argument) = rest.next() {
        match kind(&lineage, &argument) {
            Token::End => {
                seen.push(argument);
                break;
            }
            Token::Switch { on: true, name } => seen.push(name),
            Token::Switch { on: false, .. } => {}
            Token::Flag => seen.push(argument),
            Token::FlagAndValue => {
                seen.push(argument);
                seen.extend(rest.next());
            }
            Token::Operand => {
                let next = argument.to_str().and_then(|name| below(&lineage, name));
                seen.push(argument);
                if let Some(next) = next {
                    lineage.push(Cow::Owned(next));
                } else if takes_a_command(&lineage) {
                    seen.push(OsString::from("--"));
                    break;
                }
            }
        }
    }
    seen.extend(rest);
    seen
}

/// The noun or verb `name` of the last of `lineage`, with its arguments, which
/// are made only when they are asked for.
fn below(lineage: &[Cow<'_, Command>], name: &str) -> Option<Command> {
    let mut found = lineage.last()?.find_subcommand(name)?.clone();
    found.build();
    Some(found)
}

enum Token {
    /// A flag that is one argument, whatever its value.
    Flag,
    /// A flag whose value is the next argument.
    FlagAndValue,
    /// A switch with a value of its own.
    Switch {
        on: bool,
        name: OsString,
    },
    Operand,
    /// `--`
    End,
}

/// What `argument` is to the verb that `lineage` leads to.
fn kind(lineage: &[Cow<'_, Command>], argument: &OsStr) -> Token {
    let Some(text) = argument.to_str() else {
        return Token::Operand;
    };
    if text == "--" {
        return Token::End;
    }
    if let Some(long) = text.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let arg = find(lineage, |arg| {
            arg.get_long() == Some(name)
                || arg
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&name))
        });
        return match (arg, value) {
            (Some(arg), Some(value)) => switch(arg, value, &format!("--{name}")),
            (Some(arg), None) if takes_next(arg) => Token::FlagAndValue,
            _ => Token::Flag,
        };
    }
    let Some(cluster) = text.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
        return Token::Operand;
    };
    for (index, short) in cluster.char_indices() {
        let Some(arg) = find(lineage, |arg| arg.get_short() == Some(short)) else {
            break;
        };
        let after = &cluster[index + short.len_utf8()..];
        if takes_next(arg) {
            // The value is the cluster's rest, or else the next argument.
            return if after.is_empty() {
                Token::FlagAndValue
            } else {
                Token::Flag
            };
        }
        if let Some(value) = after.strip_prefix('=') {
            return switch(arg, value, &text[..=index + short.len_utf8()]);
        }
    }
    Token::Flag
}

/// `--switch=VALUE`, where it is a switch and the value is true or false.
fn switch(arg: &Arg, value: &str, name: &str) -> Token {
    let on = match value {
        "true" | "1" | "t" | "TRUE" | "True" => true,
        "false" | "0" | "f" | "FALSE" | "False" => false,
        _ => return Token::Flag,
    };
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return Token::Flag;
    }
    Token::Switch {
        on,
        name: OsString::from(name),
    }
}

fn find<'a>(lineage: &'a [Cow<'_, Command>], is: impl Fn(&Arg) -> bool) -> Option<&'a Arg> {
    lineage
        .iter()
        .rev()
        .find_map(|command| command.get_arguments().find(|arg| is(arg)))
}

/// Whether the flag's value may be the argument after it.
fn takes_next(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::arguments::Arguments;

    fn marked(line: &str) -> String {
        let arguments = line.split(' ').map(OsString::from).collect();
        normalized(&Arguments::command(), arguments)
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn options_end_at_the_image_and_switches_have_no_values() {
        for (line, expected) in [
            ("gantry run debian ls -l", "gantry run debian -- ls -l"),
            ("gantry run -it debian", "gantry run -it debian --"),
            (
                "gantry run -itd --name x -eA=1 -e B=2 --rm debian -- ls",
                "gantry run -itd --name x -eA=1 -e B=2 --rm debian -- -- ls",
            ),
            (
                "gantry --root /r container run --rm=false -m 5m debian sh -c x",
                "gantry --root /r container run -m 5m debian -- sh -c x",
            ),
            (
                "gantry run --net none debian -it",
                "gantry run --net none debian -- -it",
            ),
            ("gantry exec -it c sh -c x", "gantry exec -it c -- sh -c x"),
            ("gantry run -- debian ls", "gantry run -- debian ls"),
            ("gantry ps -a", "gantry ps -a"),
            (
                "gantry ps x -a=true --no-trunc=1",
                "gantry ps x -a --no-trunc",
            ),
            (
                "gantry run -it=false --init=true debian",
                "gantry run --init debian --",
            ),
            (
                "gantry run --rm=maybe debian",
                "gantry run --rm=maybe debian --",
            ),
            ("gantry rm a -f", "gantry rm a -f"),
            (
                "gantry volume create a --label x",
                "gantry volume create a --label x",
            ),
        ] {
            assert_eq!(marked(line), expected);
        }
    }
}
