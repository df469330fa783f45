//! Dockerfile instructions applied to a configuration: `import --change` and `commit --change`.

use gantry_oci::ContainerConfig;
use gantry_oci::config::Healthcheck;

use crate::error::ImageError;

/// Applies one instruction.
pub(crate) fn apply(config: &mut ContainerConfig, instruction: &str) -> Result<(), ImageError> {
    let wrong = |reason: String| ImageError::Change {
        instruction: instruction.to_owned(),
        reason,
    };
    let text = instruction.trim();
    let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(wrong("it has no argument".into()));
    }
    match keyword.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = Some(command(rest)),
        "ENTRYPOINT" => config.entrypoint = Some(command(rest)),
        "ENV" => {
            for (name, value) in pairs(rest).map_err(&wrong)? {
                let prefix = format!("{name}=");
                config.env.retain(|line| !line.starts_with(&prefix));
                config.env.push(format!("{prefix}{value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).map_err(&wrong)?),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (numbers, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                let numeric = numbers.split('-').all(|n| n.parse::<u16>().is_ok());
                if !numeric || !matches!(protocol, "tcp" | "udp" | "sctp") {
                    return Err(wrong(format!("{port:?} is not a port")));
                }
                let ports = &mut config.exposed_ports;
                ports.insert(format!("{numbers}/{protocol}"), Some(Default::default()));
            }
        }
        "STOPSIGNAL" => config.stop_signal = rest.to_owned(),
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" => {
            config.working_dir = if rest.starts_with('/') {
                rest.to_owned()
            } else {
                format!("{}/{rest}", config.working_dir.trim_end_matches('/'))
            };
        }
        "VOLUME" => {
            let volumes = match serde_json::from_str::<Vec<String>>(rest) {
                Ok(list) => list,
                Err(_) => rest.split_whitespace().map(str::to_owned).collect(),
            };
            for volume in volumes {
                config.volumes.insert(volume, Some(Default::default()));
            }
        }
        "ONBUILD" => {
            let next = rest.split_whitespace().next().unwrap_or_default();
            if matches!(
                next.to_ascii_uppercase().as_str(),
                "ONBUILD" | "FROM" | "MAINTAINER"
            ) {
                return Err(wrong(format!("{next} cannot be put off to a later build")));
            }
            config
                .on_build
                .get_or_insert_default()
                .push(rest.to_owned());
        }
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest).map_err(&wrong)?),
        other => {
            return Err(wrong(format!(
                "{other} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR"
            )));
        }
    }
    Ok(())
}

/// `NONE`, or `[--interval=30s] [--timeout=…] [--start-period=…] [--start-interval=…] [--retries=3] CMD …`.
fn healthcheck(text: &str) -> Result<Healthcheck, String> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while rest.starts_with("--") {
        let (option, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        rest = after.trim_start();
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let field = match name {
            "--interval" => &mut check.interval,
            "--timeout" => &mut check.timeout,
            "--start-period" => &mut check.start_period,
            "--start-interval" => &mut check.start_interval,
            "--retries" => {
                let retries = value.parse().ok().filter(|retries| *retries >= 1);
                check.retries = retries.ok_or(format!("{value:?} is not a number of retries"))?;
                continue;
            }
            _ => return Err(format!("it has no option {name}")),
        };
        let time = nanoseconds(value).filter(|time| *time == 0 || *time >= 1_000_000);
        *field = time.ok_or(format!(
            "{value:?} is not a time such as 30s or 1m30s, of 1ms or more"
        ))?;
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    check.test = match (kind.to_ascii_uppercase().as_str(), command) {
        ("NONE", "") if rest == text => vec!["NONE".to_owned()],
        ("CMD", command) if !command.is_empty() => match serde_json::from_str(command) {
            Ok(words) => [vec!["CMD".to_owned()], words].concat(),
            Err(_) => ["CMD-SHELL", command].map(str::to_owned).to_vec(),
        },
        _ => return Err("it wants NONE, or CMD and a command".into()),
    };
    Ok(check)
}

/// A time as Go writes it: "1h2m3.5s", "100ms".
fn nanoseconds(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("µs", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60e9),
        ("h", 3_600e9),
    ];
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &rest[..unit])?;
        total += number * factor;
        rest = &rest[unit..];
    }
    // A century is longer than any check.
    #[expect(clippy::cast_possible_truncation, reason = "it is below a century")]
    (!text.is_empty() && total <= 3.2e18).then_some(total.round() as i64)
}

/// A command as a JSON array, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(words) => words,
        Err(_) => ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
    }
}

/// `a=1 b="2 3"`, or the old form `a 1 2 3`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("{text:?} has no value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{word:?} is not of the form name=value")),
        })
        .collect()
}

/// Splits at white space, with quotes and backslashes as in a Dockerfile.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn applied(instructions: &[&str]) -> ContainerConfig {
        let mut config = ContainerConfig::default();
        for instruction in instructions {
            apply(&mut config, instruction).unwrap();
        }
        config
    }

    #[test]
    fn instructions_change_the_configuration_as_in_a_dockerfile() {
        let config = applied(&[
            r#"CMD ["/bin/app", "-v"]"#,
            "entrypoint exec app",
            "ENV A=1 B=\"two words\" C='x'",
            "ENV A 2 3",
            "LABEL k=v",
            "EXPOSE 80 53/udp",
            "WORKDIR /srv",
            "WORKDIR app",
            "USER 10:20",
            r#"VOLUME ["/data"]"#,
            "STOPSIGNAL SIGQUIT",
        ]);
        assert_eq!(config.cmd.unwrap(), ["/bin/app", "-v"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "exec app"]);
        assert_eq!(config.env, ["B=two words", "C=x", "A=2 3"]);
        assert_eq!(config.labels["k"], "v");
        assert_eq!(
            config.exposed_ports.keys().collect::<Vec<_>>(),
            ["53/udp", "80/tcp"]
        );
        assert_eq!(config.working_dir, "/srv/app");
        assert_eq!(
            (config.user.as_str(), config.stop_signal.as_str()),
            ("10:20", "SIGQUIT")
        );
        assert!(config.volumes.contains_key("/data"));
    }

    #[test]
    fn health_checks_and_later_steps_are_read() {
        let config = applied(&[
            "ONBUILD RUN make",
            "onbuild COPY . /src",
            "HEALTHCHECK --interval=1m30s --timeout=1.5s --retries=3 CMD curl localhost || exit 1",
        ]);
        assert_eq!(config.on_build.unwrap(), ["RUN make", "COPY . /src"]);
        let check = config.healthcheck.unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "curl localhost || exit 1"]);
        assert_eq!(
            (check.interval, check.timeout, check.retries),
            (90_000_000_000, 1_500_000_000, 3)
        );
        let exec = applied(&[r#"HEALTHCHECK CMD ["curl", "x"]"#]).healthcheck;
        assert_eq!(exec.unwrap().test, ["CMD", "curl", "x"]);
        let none = applied(&["HEALTHCHECK NONE"]).healthcheck;
        assert_eq!(none.unwrap().test, ["NONE"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "",
            "CMD",
            "RUN x",
            "EXPOSE x",
            "EXPOSE 80/icmp",
            "ENV A",
            "LABEL a=\"b",
            "ENV a=1 b",
            "ONBUILD",
            "ONBUILD onbuild RUN x",
            "ONBUILD FROM x",
            "HEALTHCHECK true",
            "HEALTHCHECK CMD",
            "HEALTHCHECK --interval=5 CMD true",
            "HEALTHCHECK --interval=1us CMD true",
            "HEALTHCHECK --often=5s CMD true",
            "HEALTHCHECK --retries=0 CMD true",
            "HEALTHCHECK --retries=3 NONE",
        ] {
            let error = apply(&mut ContainerConfig::default(), bad);
            assert!(matches!(error, Err(ImageError::Change { .. })), "{bad}");
        }
    }
}
