//! Dockerfile instructions applied to a configuration: `import --change`, and later `commit --change`.

use gantry_oci::ContainerConfig;

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
        other => {
            return Err(wrong(format!(
                "{other} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR"
            )));
        }
    }
    Ok(())
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
        ] {
            let error = apply(&mut ContainerConfig::default(), bad);
            assert!(matches!(error, Err(ImageError::Change { .. })), "{bad}");
        }
    }
}
