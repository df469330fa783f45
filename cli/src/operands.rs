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
/// Docker's switches may have (`--rm=false`). Of one switch the last counts.
pub(crate) fn normalized(root: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let mut lineage = vec![Cow::Borrowed(root)];
    let mut seen = Vec::with_capacity(arguments.len() + 1);
    // Where in `seen` switches are: values of flags look like them, and are none.
    let mut flags = Vec::new();
    let mut rest = arguments.into_iter();
    seen.extend(rest.next());
    while let Some(argument) = rest.next() {
        match kind(&lineage, &argument) {
            Token::End => {
                seen.push(argument);
                break;
            }
            Token::Switch { on: true, name, .. } => {
                flags.push(seen.len());
                seen.push(name);
            }
            Token::Switch {
                on: false,
                name,
                arg,
            } => {
                flags.push(seen.len());
                seen.push(name);
                for &place in &flags {
                    seen[place] = without(&lineage, arg, &seen[place]);
                }
            }
            Token::Flag => {
                flags.push(seen.len());
                seen.push(argument);
            }
            Token::FlagAndValue => {
                flags.push(seen.len());
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
    seen.retain(|argument| !is_taken_away(argument));
    seen
}

/// The noun or verb `name` of the last of `lineage`, with its arguments, which
/// are made only when they are asked for.
fn below(lineage: &[Cow<'_, Command>], name: &str) -> Option<Command> {
    let mut found = lineage.last()?.find_subcommand(name)?.clone();
    found.build();
    Some(found)
}

/// Every switch of a verb's that was there is off: no argument is left of it.
const TAKEN_AWAY: &str = "-\0";

fn is_taken_away(argument: &OsStr) -> bool {
    argument == TAKEN_AWAY
}

/// `argument` without the switch `arg`, alone or among others ("-it").
fn without(lineage: &[Cow<'_, Command>], arg: &Arg, argument: &OsStr) -> OsString {
    let Some(text) = argument.to_str() else {
        return argument.to_owned();
    };
    if let Some(long) = text.strip_prefix("--") {
        let gone = names(arg).any(|name| name == long);
        return OsString::from(if gone { TAKEN_AWAY } else { text });
    }
    let mut left = String::from("-");
    let mut shorts = text.chars().skip(1);
    for short in shorts.by_ref() {
        if arg.get_short() != Some(short) {
            left.push(short);
        }
        // What follows is a value.
        if find(lineage, |arg| arg.get_short() == Some(short)).is_none_or(takes_next) {
            break;
        }
    }
    left.extend(shorts);
    OsString::from(if left == "-" { TAKEN_AWAY } else { &left })
}

fn names(arg: &Arg) -> impl Iterator<Item = &str> {
    let aliases = arg.get_all_aliases().unwrap_or_default();
    arg.get_long().into_iter().chain(aliases)
}

/// The verb that `arguments` are for, with what leads to it.
pub(crate) fn verb<'a>(root: &'a Command, arguments: &[OsString]) -> Vec<Cow<'a, Command>> {
    let mut lineage = vec![Cow::Borrowed(root)];
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match kind(&lineage, argument) {
            Token::FlagAndValue => {
                let _value = rest.next();
            }
            Token::Flag | Token::Switch { .. } => {}
            Token::End => break,
            Token::Operand => match argument.to_str().and_then(|word| below(&lineage, word)) {
                Some(next) => lineage.push(Cow::Owned(next)),
                None => break,
            },
        }
    }
    lineage
}

/// What a verb says to too few or too many operands, in Docker's words.
pub(crate) fn count_of(verb: &Command) -> String {
    let positionals = || verb.get_arguments().filter(|arg| arg.is_positional());
    let least = positionals().filter(|arg| arg.is_required_set()).count();
    let most = positionals().count();
    let many = positionals().any(|arg| matches!(arg.get_action(), ArgAction::Append));
    let arguments = |count: usize| format!("{count} argument{}", if count == 1 { "" } else { "s" });
    match (least, most) {
        (_, 0) => "accepts no arguments".to_owned(),
        (0, _) if many => "accepts any number of arguments".to_owned(),
        (least, _) if many => format!("requires at least {}", arguments(least)),
        (least, most) if least == most => format!("requires {}", arguments(most)),
        (0, most) => format!("requires at most {}", arguments(most)),
        (least, most) => format!("requires at least {least} and at most {}", arguments(most)),
    }
}

enum Token<'a> {
    /// A flag that is one argument, whatever its value.
    Flag,
    /// A flag whose value is the next argument.
    FlagAndValue,
    /// A switch with a value of its own.
    Switch {
        on: bool,
        name: OsString,
        arg: &'a Arg,
    },
    Operand,
    /// `--`
    End,
}

/// What `argument` is to the verb that `lineage` leads to.
fn kind<'a>(lineage: &'a [Cow<'_, Command>], argument: &OsStr) -> Token<'a> {
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
        let arg = find(lineage, |arg| names(arg).any(|known| known == name));
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
fn switch<'a>(arg: &'a Arg, value: &str, name: &str) -> Token<'a> {
    let on = match value {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
        "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
        _ => return Token::Flag,
    };
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return Token::Flag;
    }
    Token::Switch {
        on,
        name: OsString::from(name),
        arg,
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
                "gantry run -i --init debian --",
            ),
            (
                "gantry run --rm --rm=false -dit -t=0 --name --rm debian --rm",
                "gantry run -di --name --rm debian -- --rm",
            ),
            (
                "gantry run --rm=false --rm debian",
                "gantry run --rm debian --",
            ),
            (
                "gantry run -t -eit -m 5t -t=false debian",
                "gantry run -eit -m 5t debian --",
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

    #[test]
    fn a_verb_says_how_many_operands_it_has() {
        let root = Arguments::command();
        for (line, expected) in [
            ("gantry ps x", "accepts no arguments"),
            (
                "gantry --root /r container ls -f a=b x",
                "accepts no arguments",
            ),
            ("gantry rename a", "requires 2 arguments"),
            ("gantry history", "requires 1 argument"),
            ("gantry images a b", "requires at most 1 argument"),
            ("gantry port", "requires at least 1 and at most 2 arguments"),
            ("gantry container rm", "requires at least 1 argument"),
            ("gantry exec a", "requires at least 2 arguments"),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let lineage = verb(&root, &words);
            assert_eq!(count_of(&lineage[lineage.len() - 1]), expected, "{line}");
        }
    }
}
