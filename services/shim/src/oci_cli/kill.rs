//! `kill`.

use nix::sys::signal::Signal;

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::store;
use crate::container::{Status, Target};

/// `kill [-a] ID [SIGNAL]`.
pub(super) fn kill(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let mut target = Target::Init;
    let mut arguments = Vec::new();
    loop {
        while let Some(flag) = words.flag() {
            match flag.name.as_str() {
                "all" | "a" if flag.is_on() => target = Target::All,
                "all" | "a" => {}
                "signal" | "s" => {
                    let value = words.value(&flag)?;
                    arguments.push(value);
                }
                // "kill ID -9" is understood too.
                number if number.parse::<i32>().is_ok() => arguments.push(flag.name.clone()),
                _ => return Err(flag.unknown("kill")),
            }
        }
        match words.optional() {
            Some(word) => arguments.push(word),
            None => break,
        }
    }
    let mut arguments = arguments.into_iter();
    let id = arguments
        .next()
        .ok_or_else(|| CliError::usage("the container's id is missing"))?;
    let signal = match arguments.next() {
        Some(name) => parse(&name)?,
        None => libc::SIGTERM,
    };
    let (_, container) = store::open(globals, &id)?;
    if target == Target::All && container.status()? == Status::Stopped {
        let _ = container.kill(signal, target);
        return Ok(0);
    }
    container
        .kill(signal, target)
        .map_err(|error| match error {
            crate::container::Error::State { id, .. } => CliError::State {
                id,
                verb: "kill",
                // The words by which containerd knows that there is nothing to kill.
                why: "container not running".to_owned(),
            },
            other => other.into(),
        })?;
    Ok(0)
}

/// "9", "KILL", "SIGKILL", "sigkill", "RTMIN+3".
pub(super) fn parse(name: &str) -> Result<i32, CliError> {
    let unknown = || CliError::usage(format!("unknown signal {name:?}"));
    if let Ok(number) = name.parse::<i32>() {
        return if (0..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32, sign: i32| {
        let offset: i32 = if rest.is_empty() {
            0
        } else {
            rest[1..].parse().ok()?
        };
        let number = base + sign * offset;
        (34..=64).contains(&number).then_some(number)
    };
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return real_time(rest, 34, 1).ok_or_else(unknown);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return real_time(rest, 64, -1).ok_or_else(unknown);
    }
    format!("SIG{short}")
        .parse::<Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_may_be_a_number_or_any_of_its_names() {
        for name in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(parse(name).unwrap(), 9);
        }
        assert_eq!(parse("RTMIN+3").unwrap(), 37);
        assert_eq!(parse("SIGRTMAX-1").unwrap(), 63);
        for name in ["", "FOO", "65", "-1", "RTMIN+99"] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}
