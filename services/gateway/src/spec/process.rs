//! The process of a container: what it executes, its environment, where and with
//! what limits. The rules by which the image's and a person's wishes meet are
//! Docker's.

use serde_json::{Value, json};

use super::capabilities::Set;
use crate::container::Record;
use crate::error::{Error, Result};
use crate::wanted::Ulimit;

/// Docker's, where neither the image nor a person sets one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Resource limits by the names that `--ulimit` takes (getrlimit(2)).
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// What the first process executes: entry point and command of the person or
/// else of the image. A person's entry point puts the image's command aside.
///
/// # Errors
/// Nobody says what to run.
pub fn args(record: &Record) -> Result<Vec<String>> {
    let (entrypoint, command) = entrypoint_and_command(record);
    let args = [entrypoint, command].concat();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::NoCommand {
            image: record.wanted.image.clone(),
        });
    }
    Ok(args)
}

/// The two that [`args`] are made of.
#[must_use]
pub fn entrypoint_and_command(record: &Record) -> (Vec<String>, Vec<String>) {
    let wanted = &record.wanted;
    let image = record.image.as_ref().map(|image| &image.config);
    let of_image = |list: Option<&Option<Vec<String>>>| list.cloned().flatten();
    let (entrypoint, command) = match &wanted.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), wanted.command.clone()),
        None => {
            let entrypoint = of_image(image.map(|config| &config.entrypoint)).unwrap_or_default();
            let command = if wanted.command.is_empty() {
                of_image(image.map(|config| &config.cmd)).unwrap_or_default()
            } else {
                wanted.command.clone()
            };
            (entrypoint, command)
        }
    };
    // An entry point of one empty word says: none.
    if entrypoint.len() == 1 && entrypoint[0].is_empty() {
        (Vec::new(), command)
    } else {
        (entrypoint, command)
    }
}

/// The environment: the engine's own variables, then the person's, then what of
/// the image's is left; each name once, the last value in the first place.
#[must_use]
pub fn env(record: &Record) -> Vec<String> {
    let mut env = vec![
        DEFAULT_PATH.to_owned(),
        format!("HOSTNAME={}", record.hostname()),
    ];
    if record.wanted.tty {
        env.push("TERM=xterm".to_owned());
    }
    merge(&mut env, &configured_env(record));
    env
}

/// The person's variables, and those of the image's that have other names: what
/// `inspect` shows and `commit` keeps. Each name once, the last value in the first
/// place. A name without a value takes the variable out.
#[must_use]
pub fn configured_env(record: &Record) -> Vec<String> {
    let image = record.image.as_ref();
    let of_image = image.map_or(&[][..], |image| &image.config.env);
    let mut env = named_once(&record.wanted.env);
    let own = env.len();
    for variable in named_once(of_image) {
        if !env[..own]
            .iter()
            .any(|other| name(other) == name(&variable))
        {
            env.push(variable);
        }
    }
    env
}

fn name(variable: &str) -> &str {
    variable.split('=').next().unwrap_or_default()
}

fn named_once(variables: &[String]) -> Vec<String> {
    let mut once: Vec<String> = Vec::new();
    for variable in variables {
        match once.iter_mut().find(|other| name(other) == name(variable)) {
            Some(place) => place.clone_from(variable),
            None => once.push(variable.clone()),
        }
    }
    once
}

/// Sets each "KEY=value" in `env`, and takes out each "KEY" alone.
pub fn merge(env: &mut Vec<String>, more: &[String]) {
    for variable in more {
        let (key, value) = match variable.split_once('=') {
            Some((key, _)) => (key, Some(variable)),
            None => (variable.as_str(), None),
        };
        let place = env.iter().position(|present| {
            present
                .strip_prefix(key)
                .is_some_and(|rest| rest.starts_with('='))
        });
        match (place, value) {
            (Some(place), Some(value)) => env[place].clone_from(value),
            (Some(place), None) => {
                env.remove(place);
            }
            (None, Some(value)) => env.push(value.clone()),
            (None, None) => {}
        }
    }
}

/// The working directory.
///
/// # Errors
/// It is not absolute.
pub fn cwd(record: &Record) -> Result<String> {
    match configured_cwd(record) {
        "" => Ok("/".to_owned()),
        directory if directory.starts_with('/') => Ok(directory.to_owned()),
        directory => Err(Error::invalid(
            "workdir",
            format!("{directory:?} is not an absolute path; begin it with '/'"),
        )),
    }
}

/// The working directory, as the person or the image names it. Empty: the root.
#[must_use]
pub fn configured_cwd(record: &Record) -> &str {
    let image = record.image.as_ref().map(|image| &image.config.working_dir);
    [Some(&record.wanted.working_dir), image]
        .into_iter()
        .flatten()
        .find(|directory| !directory.is_empty())
        .map_or("", String::as_str)
}

/// The user, as the person or the image names it. Empty: root.
#[must_use]
pub fn user(record: &Record) -> String {
    if record.wanted.user.is_empty() {
        let image = record.image.as_ref();
        image
            .map(|image| image.config.user.clone())
            .unwrap_or_default()
    } else {
        record.wanted.user.clone()
    }
}

/// The user to look up in the image's files: where none is named root, who has
/// groups there too.
#[must_use]
pub fn user_or_root(record: &Record) -> String {
    match user(record) {
        nobody if nobody.is_empty() => "0".to_owned(),
        user => user,
    }
}

/// The spec's `rlimits`.
///
/// # Errors
/// A name is unknown, or a soft limit is above its hard one.
pub fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<Value>> {
    ulimits.iter().map(rlimit).collect()
}

fn rlimit(ulimit: &Ulimit) -> Result<Value> {
    let name = ulimit.name.to_ascii_lowercase();
    if !ULIMITS.contains(&name.as_str()) {
        return Err(Error::invalid(
            "ulimit",
            format!(
                "there is no limit {:?}; there are {}",
                ulimit.name,
                ULIMITS.join(", ")
            ),
        ));
    }
    // -1 is no limit: the largest number there is.
    let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let (soft, hard) = (number(ulimit.soft), number(ulimit.hard));
    if soft > hard {
        return Err(Error::invalid(
            "ulimit",
            format!(
                "{name}: the soft limit {} is above the hard limit {}",
                ulimit.soft, ulimit.hard
            ),
        ));
    }
    Ok(json!({
        "type": format!("RLIMIT_{}", name.to_ascii_uppercase()),
        "soft": soft,
        "hard": hard,
    }))
}

/// The spec's `capabilities`. Nothing is inheritable or ambient, so that a user
/// other than root has none after execve(2), as with Docker.
#[must_use]
pub fn capabilities(set: Set) -> Value {
    let names = set.names();
    json!({"bounding": names, "effective": names, "permitted": names})
}

/// Supplementary groups: those given by number, and the names, which only the container's own /etc/group knows.
///
/// # Errors
/// A name is none.
pub fn additional_gids(groups: &[String]) -> Result<(Vec<u32>, Vec<&str>)> {
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for group in groups {
        match group.parse() {
            Ok(number) => numbers.push(number),
            Err(_) if group.is_empty() || group.contains([',', ':', '\n', '\0']) => {
                return Err(Error::invalid(
                    "group-add",
                    format!("{group:?} is neither the number nor the name of a group"),
                ));
            }
            Err(_) => names.push(group.as_str()),
        }
    }
    Ok((numbers, names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerId, Image};
    use crate::wanted::Wanted;

    fn record(wanted: Wanted, entrypoint: Option<&[&str]>, cmd: Option<&[&str]>) -> Record {
        let id = ContainerId::try_from("a".repeat(64)).unwrap();
        let mut record = Record::new(id, "one".to_owned(), wanted);
        let owned = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        record.image = Some(Image {
            id: "sha256:1".to_owned(),
            config: gantry_oci::ContainerConfig {
                entrypoint: entrypoint.map(owned),
                cmd: cmd.map(owned),
                env: vec!["PATH=/image".to_owned(), "A=1".to_owned()],
                ..Default::default()
            },
        });
        record
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn entry_point_and_command_meet_as_dockers_do() {
        let run = |entrypoint: Option<&[&str]>, command: &[&str]| {
            let wanted = Wanted {
                entrypoint: entrypoint.map(words),
                command: words(command),
                ..Wanted::default()
            };
            args(&record(wanted, Some(&["/entry"]), Some(&["serve"])))
        };
        assert_eq!(run(None, &[]).unwrap(), ["/entry", "serve"]);
        assert_eq!(run(None, &["x"]).unwrap(), ["/entry", "x"]);
        assert_eq!(run(Some(&["/mine"]), &[]).unwrap(), ["/mine"]);
        assert_eq!(run(Some(&["/mine"]), &["x"]).unwrap(), ["/mine", "x"]);
        assert_eq!(run(Some(&[""]), &["x"]).unwrap(), ["x"]);
        assert!(matches!(run(Some(&[]), &[]), Err(Error::NoCommand { .. })));
    }

    #[test]
    fn a_persons_variables_win_over_the_images() {
        let wanted = Wanted {
            env: words(&["A=2", "B=x=y", "PATH"]),
            tty: true,
            ..Wanted::default()
        };
        let env = env(&record(wanted, None, None));
        assert_eq!(env, ["HOSTNAME=aaaaaaaaaaaa", "TERM=xterm", "A=2", "B=x=y"]);
    }

    #[test]
    fn a_variable_that_is_given_twice_has_its_last_value_and_is_there_once() {
        let wanted = Wanted {
            env: words(&["B=1", "A=2", "B=2", "PATH=/x", "PATH"]),
            ..Wanted::default()
        };
        let mut record = record(wanted, None, None);
        if let Some(image) = &mut record.image {
            image.config.env = words(&["A=1", "C=1", "C=2", "PATH=/image"]);
        }
        let configured = configured_env(&record);
        assert_eq!(configured, ["B=2", "A=2", "PATH", "C=2"]);
        assert_eq!(env(&record), ["HOSTNAME=aaaaaaaaaaaa", "B=2", "A=2", "C=2"]);
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let mut env = words(&["AB=1"]);
        merge(&mut env, &words(&["A=2", "A", "AB"]));
        assert!(env.is_empty(), "{env:?}");
    }

    #[test]
    fn unlimited_is_the_largest_number() {
        let ulimit = |soft, hard| Ulimit {
            name: "nofile".to_owned(),
            soft,
            hard,
        };
        let limits = rlimits(&[ulimit(5, -1)]).unwrap();
        assert_eq!(limits[0]["hard"], u64::MAX);
        assert_eq!(limits[0]["type"], "RLIMIT_NOFILE");
        assert!(rlimits(&[ulimit(-1, 5)]).is_err());
        assert!(
            rlimits(&[Ulimit {
                name: "nofiles".to_owned(),
                soft: 1,
                hard: 1
            }])
            .is_err()
        );
    }

    #[test]
    fn a_relative_working_directory_is_refused() {
        let wanted = Wanted {
            working_dir: "tmp".to_owned(),
            ..Wanted::default()
        };
        assert!(cwd(&record(wanted, None, None)).is_err());
    }

    #[test]
    fn a_limit_is_known_and_its_soft_one_is_not_the_higher() {
        let limit = |name: &str, soft, hard| {
            rlimits(&[Ulimit {
                name: name.to_owned(),
                soft,
                hard,
            }])
        };
        assert_eq!(
            limit("core", 0, -1).unwrap(),
            [json!({"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX})]
        );
        for (name, soft, hard) in [("bogus", 1, 1), ("nofile", 2, 1), ("nofile", -1, 5)] {
            let error = limit(name, soft, hard).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
