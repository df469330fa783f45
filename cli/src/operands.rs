//! Flags after IMAGE (or CONTAINER, for `exec`) belong to the command.
//!
//! Docker's parser stops at the first operand of some verbs: `run -it debian ls
//! -l` runs `ls -l`, whatever flags `run` has. Clap would look at `-l` first, so
//! the end of the options is marked with `--` before clap sees the arguments.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

/// Verbs whose first operand ends their options.
const VERBS: [&str; 3] = ["create", "exec", "run"];

/// `arguments` (the program's name first) with `--` after the first operand of
/// a verb in [`VERBS`].
pub(crate) fn end_options(root: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let mut command = root;
    let mut position = 1;
    let mut lineage = vec![root];
    while position < arguments.len() {
        let argument = &arguments[position];
        match width(&lineage, argument) {
            Token::End => return arguments,
            Token::Flag(width) => position += width,
            Token::Operand => {
                if let Some(next) = argument
                    .to_str()
                    .and_then(|name| command.find_subcommand(name))
                {
                    command = next;
                    lineage.push(next);
                    position += 1;
                } else if VERBS.contains(&command.get_name()) {
                    let mut marked = arguments;
                    marked.insert(position + 1, OsString::from("--"));
                    return marked;
                } else {
                    return arguments;
                }
            }
        }
    }
    arguments
}

enum Token {
    /// A flag, with so many arguments in all.
    Flag(usize),
    Operand,
    /// `--`
    End,
}

/// What `argument` is to the verb that `lineage` leads to.
fn width(lineage: &[&Command], argument: &OsStr) -> Token {
    let Some(text) = argument.to_str() else {
        return Token::Operand;
    };
    if text == "--" {
        return Token::End;
    }
    if let Some(long) = text.strip_prefix("--") {
        if long.contains('=') {
            return Token::Flag(1);
        }
        let separate = find(lineage, |arg| {
            arg.get_long() == Some(long)
                || arg
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&long))
        })
        .is_some_and(takes_next);
        return Token::Flag(1 + usize::from(separate));
    }
    let Some(cluster) = text.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
        return Token::Operand;
    };
    for (index, short) in cluster.char_indices() {
        let Some(arg) = find(lineage, |arg| arg.get_short() == Some(short)) else {
            break;
        };
        if takes_next(arg) {
            // The value is the cluster's rest, or else the next argument.
            let attached = index + short.len_utf8() < cluster.len();
            return Token::Flag(1 + usize::from(!attached));
        }
    }
    Token::Flag(1)
}

fn find<'a>(lineage: &[&'a Command], is: impl Fn(&Arg) -> bool) -> Option<&'a Arg> {
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
        end_options(&Arguments::command(), arguments)
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn options_end_at_the_image() {
        for (line, expected) in [
            ("gantry run debian ls -l", "gantry run debian -- ls -l"),
            ("gantry run -it debian", "gantry run -it debian --"),
            (
                "gantry run -itd --name x -eA=1 -e B=2 --rm debian -- ls",
                "gantry run -itd --name x -eA=1 -e B=2 --rm debian -- -- ls",
            ),
            (
                "gantry --root /r container run --rm=false -m 5m debian sh -c x",
                "gantry --root /r container run --rm=false -m 5m debian -- sh -c x",
            ),
            (
                "gantry run --net none debian -it",
                "gantry run --net none debian -- -it",
            ),
            ("gantry exec -it c sh -c x", "gantry exec -it c -- sh -c x"),
            ("gantry run -- debian ls", "gantry run -- debian ls"),
            ("gantry ps -a", "gantry ps -a"),
            ("gantry rm a -f", "gantry rm a -f"),
        ] {
            assert_eq!(marked(line), expected);
        }
    }
}
