//! Options of `run` and `create` that Docker has and that cannot be had here: known,
//! so that the refusal says why, and what to do.

use clap::Args;

use crate::exit::Failure;
use crate::parse::{ParseError, Parsed};

#[derive(Debug, Args)]
pub(crate) struct RefusedOptions {
    /// GPUs: refused, since no driver gives them to containers
    #[arg(long, value_name = "GPUS", value_parser = gpus)]
    gpus: Option<String>,
    /// Option of the writable layer: refused, since it has none
    #[arg(long, value_name = "KEY=VALUE", value_parser = storage_option)]
    storage_opt: Vec<String>,
    /// How it is kept apart: default, which is the one way on Linux
    #[arg(long, value_name = "WAY", hide = true)]
    isolation: Option<String>,
}

impl RefusedOptions {
    /// With Docker it is the engine that refuses, and the code is that of a refusal.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if let Some(key) = self.storage_opt.first() {
            let why = match key.as_str() {
                "size" => "size is not supported: a writable layer is a directory, which has no limit of its own; mount something that has one where much may be written, as --mount type=tmpfs,dst=/data,tmpfs-size=1g".to_owned(),
                key => format!("unknown option {key}; there is none for the writable layer"),
            };
            return Err(Failure::new(format!("--storage-opt: {why}")));
        }
        if let Some(way) = self.isolation.as_deref()
            && !matches!(way, "" | "default")
        {
            return Err(Failure::new(format!(
                "--isolation {way}: Linux has no other than \"default\"; leave it out"
            )));
        }
        match &self.gpus {
            Some(gpus) => Err(Failure::new(format!(
                "--gpus {gpus}: could not select device driver \"\" with capabilities: [[gpu]], since there is none that gives GPUs to containers; give it their devices with --device"
            ))),
            None => Ok(()),
        }
    }
}

/// "all", a count, or keys as "device=0,capabilities=utility".
fn gpus(text: &str) -> Parsed<String> {
    const KEYS: [&str; 5] = ["capabilities", "count", "device", "driver", "options"];
    let wrong = |what: &str| ParseError::new(format!("{text:?}: {what}"));
    for field in text.split(',') {
        match field.trim_matches('"').split_once('=') {
            Some((key, _)) if KEYS.contains(&key) => {}
            Some((key, _)) => {
                let known = KEYS.join(", ");
                return Err(wrong(&format!("unexpected key {key:?}; there are {known}")));
            }
            // What goes on after a comma belongs to the key before.
            None if field != text || text == "all" || text.parse::<i64>().is_ok() => {}
            None => return Err(wrong("say all, a number, or device=ID")),
        }
    }
    Ok(text.to_owned())
}

/// The key of "size=10g".
fn storage_option(text: &str) -> Parsed<String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(key.to_ascii_lowercase()),
        _ => Err(ParseError::new(format!(
            "{text:?} is not a storage option; say KEY=VALUE"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_even_be_meant_is_told_first() {
        for text in [
            "all",
            "2",
            "device=0",
            "\"device=0,1\"",
            "count=1,capabilities=utility",
        ] {
            assert_eq!(gpus(text).as_deref(), Ok(text));
        }
        for text in ["bogus=1", "some", "count=1,bogus=2"] {
            assert!(gpus(text).is_err(), "{text}");
        }
        assert_eq!(storage_option("Size=1g").as_deref(), Ok("size"));
        assert!(storage_option("size").is_err());
    }
}
