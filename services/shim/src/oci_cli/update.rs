//! `update`.

use std::io::Read;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::store;

/// `update [options] ID`: limits from a file, or one by one.
pub(super) fn update(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let mut resources = Map::new();
    let mut file = None;
    let mut id = None;
    loop {
        while let Some(flag) = words.flag() {
            let (part, field) = match flag.name.as_str() {
                "resources" | "r" => {
                    file = Some(words.value(&flag)?);
                    continue;
                }
                "memory" | "m" => ("memory", "limit"),
                "memory-reservation" => ("memory", "reservation"),
                "memory-swap" => ("memory", "swap"),
                // No kernel has had these since 5.4; every caller still passes them.
                "kernel-memory" | "kernel-memory-tcp" | "l3-cache-schema" | "mem-bw-schema" => {
                    words.value(&flag)?;
                    continue;
                }
                "cpu-period" => ("cpu", "period"),
                "cpu-quota" => ("cpu", "quota"),
                "cpu-burst" => ("cpu", "burst"),
                "cpu-share" | "cpu-shares" => ("cpu", "shares"),
                "cpu-idle" => ("cpu", "idle"),
                "cpu-rt-period" => ("cpu", "realtimePeriod"),
                "cpu-rt-runtime" => ("cpu", "realtimeRuntime"),
                "cpuset-cpus" => ("cpu", "cpus"),
                "cpuset-mems" => ("cpu", "mems"),
                "pids-limit" => ("pids", "limit"),
                "blkio-weight" => ("blockIO", "weight"),
                _ => return Err(flag.unknown("update")),
            };
            let value = if matches!(field, "cpus" | "mems") {
                Value::from(words.value(&flag)?)
            } else {
                let text = words.value(&flag)?;
                let number = size(&text).ok_or_else(|| {
                    CliError::usage(format!("--{} {text:?} is not a number", flag.name))
                })?;
                Value::from(number)
            };
            resources
                .entry(part)
                .or_insert_with(|| json!({}))
                .as_object_mut()
                .map(|part| part.insert(field.to_owned(), value));
        }
        match words.optional() {
            Some(word) if id.is_none() => id = Some(word),
            Some(extra) => {
                return Err(CliError::usage(format!("unexpected argument {extra:?}")));
            }
            None => break,
        }
    }
    let id = id.ok_or_else(|| CliError::usage("the container's id is missing"))?;
    let (_, container) = store::open(globals, &id)?;
    let (text, path) = match file.as_deref() {
        None => (Value::Object(resources).to_string(), "the options"),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| CliError::file("read", "standard input".as_ref(), error))?;
            (text, "standard input")
        }
        Some(path) => (
            std::fs::read_to_string(path)
                .map_err(|error| CliError::file("read", path.as_ref(), error))?,
            path,
        ),
    };
    let resources: LinuxResources =
        serde_json::from_str(&text).map_err(|source| CliError::Json {
            what: "set of resources",
            path: path.into(),
            source,
        })?;
    container.update(&resources)?;
    Ok(0)
}

/// A number, with k, m, g or t for powers of 1024.
fn size(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let plain = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, factor) = match plain.as_bytes().last()? {
        b'k' => (&plain[..plain.len() - 1], 1 << 10),
        b'm' => (&plain[..plain.len() - 1], 1 << 20),
        b'g' => (&plain[..plain.len() - 1], 1 << 30),
        b't' => (&plain[..plain.len() - 1], 1_i64 << 40),
        _ => (plain, 1),
    };
    digits.parse::<i64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_usual_suffixes() {
        assert_eq!(size("-1"), Some(-1));
        assert_eq!(size("64k"), Some(65536));
        assert_eq!(size("2GB"), Some(2 << 30));
        assert_eq!(size("x"), None);
        assert_eq!(size(""), None);
    }
}
