//! Limits, devices, policies and the other small syntaxes of `run`.

use std::fs;

use gantry_proto::gateway::v1::{Device, DeviceLimit, RestartPolicy, Ulimit};
use gantry_proto::types::v1::{LogOptions, Platform};

use super::sizes::size;
use super::{ParseError, Parsed};

/// "1.5" CPUs, in billionths.
pub(crate) fn cpus(text: &str) -> Parsed<u64> {
    let wrong = || ParseError::new(format!("{text:?} is not a number of CPUs; say 0.5 or 2"));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty())
        || !digits(whole)
        || !digits(fraction)
        || fraction.len() > 9
    {
        return Err(wrong());
    }
    let whole: u64 = format!("0{whole}").parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(fraction))
        .ok_or_else(wrong)
}

/// "nofile=1024:2048". Which limits there are, and that the soft one is not the
/// higher, is the engine's to say.
pub(crate) fn ulimit(text: &str) -> Parsed<Ulimit> {
    let wrong = || {
        ParseError::new(format!(
            "{text:?} is not a limit; say NAME=SOFT[:HARD], as in nofile=1024:2048"
        ))
    };
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let limit = |text: &str| match text.parse::<i64>() {
        Ok(limit) if limit >= -1 => Ok(limit),
        _ => Err(wrong()),
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (limit(soft)?, limit(hard)?);
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

/// -1000 to 1000.
pub(crate) fn oom_score(text: &str) -> Parsed<i32> {
    let score: i32 = text
        .parse()
        .map_err(|_| ParseError::new(format!("{text:?} is not a number")))?;
    match score {
        -1000..=1000 => Ok(score),
        _ => Err(ParseError::refusal(format!(
            "{score} is not in -1000 to 1000"
        ))),
    }
}

/// An address of a container.
pub(crate) fn address(text: &str) -> Parsed<std::net::IpAddr> {
    text.parse()
        .map_err(|_| ParseError::refusal(format!("{text:?} is not an IP address")))
}

/// A hardware address of one interface: "02-42-0A-00-00-05" as "02:42:0a:00:00:05".
pub(crate) fn mac_address(text: &str) -> Parsed<String> {
    let wrong =
        |what: &str| ParseError::new(format!("{text:?} is not a valid mac address: {what}"));
    let address = text.replace('-', ":").to_ascii_lowercase();
    let pairs: Vec<&str> = address.split(':').collect();
    let is_pair = |pair: &&str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
    if pairs.len() != 6 || !pairs.iter().all(is_pair) {
        return Err(wrong("say six pairs of digits, as in 02:42:0a:00:00:05"));
    }
    let first = u8::from_str_radix(pairs[0], 16).unwrap_or(1);
    if first & 1 == 1 || pairs.iter().all(|pair| *pair == "00") {
        return Err(wrong(
            "one interface's is not 0, and its first pair is even",
        ));
    }
    Ok(address)
}

/// "on-failure:3"
pub(crate) fn restart_policy(text: &str) -> Parsed<RestartPolicy> {
    let (name, count) = match text.split_once(':') {
        Some((name, count)) => (name, Some(count)),
        None => (text, None),
    };
    let maximum_retry_count = match (name, count) {
        ("", None) => 0,
        ("no" | "always" | "unless-stopped" | "on-failure", None) => 0,
        ("on-failure", Some(count)) => count.parse().map_err(|_| {
            let problem = format!("{text:?}: {count:?} is not a number of tries");
            match count.parse::<i64>() {
                Ok(_) => ParseError::refusal(problem),
                Err(_) => ParseError::new(problem),
            }
        })?,
        ("no" | "always" | "unless-stopped", Some(_)) => {
            return Err(ParseError::refusal(format!(
                "{text:?}: only on-failure takes a number of tries"
            )));
        }
        _ => {
            return Err(ParseError::refusal(format!(
                "{text:?} is not a policy; say no, on-failure[:TRIES], always or unless-stopped"
            )));
        }
    };
    Ok(RestartPolicy {
        name: name.to_owned(),
        maximum_retry_count,
    })
}

/// "/dev/sda:/dev/xvda:rwm"
pub(crate) fn device(text: &str) -> Parsed<Device> {
    let wrong = || {
        ParseError::new(format!(
            "{text:?} is not a device; say /dev/HOST[:/dev/CONTAINER][:rwm]"
        ))
    };
    let permissions =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| b"rwm".contains(&byte));
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let (container, access) = match rest.as_slice() {
        [] => ("", ""),
        [one] if permissions(one) => ("", *one),
        [one] => (*one, ""),
        [one, two] if permissions(two) => (*one, *two),
        _ => return Err(wrong()),
    };
    if !host.starts_with('/') || !(container.is_empty() || container.starts_with('/')) {
        return Err(wrong());
    }
    Ok(Device {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        permissions: access.to_owned(),
    })
}

/// "/dev/sda:1mb": a device, and what it may do in a second.
pub(crate) fn device_bytes(text: &str) -> Parsed<DeviceLimit> {
    device_limit(text, super::sizes::size)
}

/// "/dev/sda:100": a device, and a plain number.
pub(crate) fn device_number(text: &str) -> Parsed<DeviceLimit> {
    device_limit(text, |number| {
        number
            .parse()
            .map_err(|_| ParseError::new(format!("{number:?} is not a number")))
    })
}

fn device_limit(text: &str, value: impl Fn(&str) -> Parsed<u64>) -> Parsed<DeviceLimit> {
    match text.rsplit_once(':') {
        Some((path, number)) if path.starts_with('/') => Ok(DeviceLimit {
            host_path: path.to_owned(),
            value: value(number)?,
        }),
        _ => Err(ParseError::new(format!(
            "{text:?} is not DEVICE:NUMBER, as in /dev/sda:100"
        ))),
    }
}

/// "linux/arm64/v8"
pub(crate) fn platform(text: &str) -> Parsed<Platform> {
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        [architecture] => ("linux", *architecture, ""),
        _ => ("", "", ""),
    };
    if os.is_empty() || architecture.is_empty() {
        return Err(ParseError::refusal(format!(
            "{text:?} is not a platform; say OS/ARCHITECTURE[/VARIANT], as in linux/arm64"
        )));
    }
    let architecture = match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Ok(Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    })
}

/// A host and its address, "db:10.0.0.7" or "db=10.0.0.7".
pub(crate) fn extra_host(text: &str) -> Parsed<String> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .unwrap_or_default();
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if name.is_empty()
        || !(address == "host-gateway" || address.parse::<std::net::IpAddr>().is_ok())
    {
        return Err(ParseError::new(format!(
            "{text:?} is not a host with its address; say NAME:IP"
        )));
    }
    Ok(format!("{name}:{address}"))
}

/// A security option, with a seccomp profile's file replaced by what is in it.
pub(crate) fn security_option(text: &str) -> Parsed<String> {
    let (key, value) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .unwrap_or((text, ""));
    if key != "seccomp" || matches!(value, "unconfined" | "builtin") {
        return Ok(if value.is_empty() {
            key.to_owned()
        } else {
            format!("{key}={value}")
        });
    }
    let profile = fs::read_to_string(value).map_err(|error| {
        ParseError::new(format!(
            "cannot read the seccomp profile {value:?}: {error}"
        ))
    })?;
    let parsed: serde_json::Value = serde_json::from_str(&profile).map_err(|error| {
        ParseError::new(format!(
            "the seccomp profile {value:?} is not JSON: {error}"
        ))
    })?;
    Ok(format!("seccomp={parsed}"))
}

/// Where output is kept, from `--log-driver` and `--log-opt`.
pub(crate) fn log(driver: Option<&str>, options: &[String]) -> Parsed<Option<LogOptions>> {
    let enabled = match driver {
        None | Some("" | "json-file" | "local" | "cri") => true,
        Some("none") => false,
        Some(other) => {
            return Err(ParseError::refusal(format!(
                "--log-driver {other:?}: there is no such log driver; there are cri and none"
            )));
        }
    };
    if driver.is_none() && options.is_empty() {
        return Ok(None);
    }
    let mut log = LogOptions {
        enabled,
        ..LogOptions::default()
    };
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match key {
            "max-size" => log.max_segment_bytes = size(value)?,
            "max-file" => {
                log.max_segments =
                    value
                        .parse()
                        .ok()
                        .filter(|count| *count > 0)
                        .ok_or_else(|| {
                            ParseError::refusal(format!(
                                "--log-opt {option:?}: {value:?} is not a number of files"
                            ))
                        })?;
            }
            _ => {
                return Err(ParseError::refusal(format!(
                    "--log-opt {option:?}: there is no such option; there are max-size and max-file"
                )));
            }
        }
    }
    Ok(Some(log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_a_device_has_a_path_and_a_number() {
        let limit = device_bytes("/dev/sda:1mb").unwrap();
        assert_eq!(
            (limit.host_path.as_str(), limit.value),
            ("/dev/sda", 1 << 20)
        );
        assert_eq!(device_number("/dev/a:b:100").unwrap().host_path, "/dev/a:b");
        for wrong in ["/dev/sda", "sda:1", "/dev/sda:", "/dev/sda:x", ""] {
            assert!(device_number(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn cpus_are_billionths() {
        for (text, nanos) in [
            ("2", 2_000_000_000),
            ("0.5", 500_000_000),
            (".25", 250_000_000),
            ("1.000000001", 1_000_000_001),
        ] {
            assert_eq!(cpus(text), Ok(nanos), "{text}");
        }
        for bad in ["", ".", "-1", "x", "1e3", "0.0000000001"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ulimits_have_a_soft_and_a_hard_limit() {
        let limit = ulimit("nofile=1024:2048").unwrap();
        assert_eq!((limit.soft, limit.hard), (1024, 2048));
        let limit = ulimit("core=-1").unwrap();
        assert_eq!((limit.soft, limit.hard), (-1, -1));
        for bad in ["nofile", "nofile=", "nofile=x", "nofile=1:x", "nofile=-2"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hardware_address_is_of_one_interface() {
        let address = mac_address("02-42-0A-00-00-05");
        assert_eq!(address.as_deref(), Ok("02:42:0a:00:00:05"));
        for bad in [
            "zz",
            "02:42:0a:00:00",
            "02:42:0a:00:00:05:06",
            "2:42:0a:00:00:05",
            "+2:42:0a:00:00:05",
            "03:42:0a:00:00:05",
            "00:00:00:00:00:00",
        ] {
            assert!(mac_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_on_failure_counts() {
        assert_eq!(
            restart_policy("on-failure:3").unwrap().maximum_retry_count,
            3
        );
        assert_eq!(restart_policy("always").unwrap().name, "always");
        assert_eq!(restart_policy("").unwrap().name, "");
        for bad in ["always:3", "sometimes", "on-failure:x", ":1"] {
            assert!(restart_policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_may_have_another_name_and_less_access() {
        let parts = |text: &str| {
            let device = device(text).unwrap();
            (device.host_path, device.container_path, device.permissions)
        };
        let owned = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(parts("/dev/a"), owned("/dev/a", "", ""));
        assert_eq!(parts("/dev/a:r"), owned("/dev/a", "", "r"));
        assert_eq!(parts("/dev/a:/dev/b:rw"), owned("/dev/a", "/dev/b", "rw"));
        for bad in ["", "dev", "/dev/a:/dev/b:x", "/dev/a:b", "/dev/a:/b:r:w"] {
            assert!(device(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_have_addresses() {
        assert_eq!(extra_host("db=::1").unwrap(), "db:::1");
        assert_eq!(extra_host("db:[::1]").unwrap(), "db:::1");
        assert_eq!(extra_host("h:host-gateway").unwrap(), "h:host-gateway");
        assert!(extra_host("db").is_err());
        assert!(extra_host("db:x").is_err());
    }

    #[test]
    fn a_seccomp_profile_is_sent_by_value() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("profile.json");
        fs::write(&file, "{ \"defaultAction\": \"SCMP_ACT_ALLOW\" }").unwrap();
        assert_eq!(
            security_option(&format!("seccomp={}", file.display())).unwrap(),
            "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"
        );
        assert_eq!(
            security_option("no-new-privileges").unwrap(),
            "no-new-privileges"
        );
        assert_eq!(
            security_option("no-new-privileges:true").unwrap(),
            "no-new-privileges=true"
        );
        assert!(security_option("seccomp=/nonexistent").is_err());
    }

    #[test]
    fn log_options_are_sizes_and_counts() {
        let options = ["max-size=1m".to_owned(), "max-file=5".to_owned()];
        let log_options = log(None, &options).unwrap().unwrap();
        assert_eq!(
            (log_options.max_segment_bytes, log_options.max_segments),
            (1 << 20, 5)
        );
        assert!(!log(Some("none"), &[]).unwrap().unwrap().enabled);
        assert_eq!(log(None, &[]).unwrap(), None);
        assert!(log(Some("syslog"), &[]).is_err());
        assert!(log(None, &["max-file=0".to_owned()]).is_err());
    }
}
