//! Reading specifications: what they say is to be passed over with a warning is passed over, and names that the types
//! behind [`Spec`] spell in their own way are understood as the specification spells them.
//!
//! A specification that is right as it is, which is nearly every one, is read once and never looked at here.

use oci_spec::runtime::{Capability, Process, Spec};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

use super::affinity;

/// The specification's names of scheduler flags, and those that the types know.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// A config.json, and warnings.
pub fn read_spec(bytes: &[u8]) -> serde_json::Result<(Spec, Vec<String>)> {
    read(bytes, |spec, warnings| match spec.get_mut("process") {
        Some(process) => mend_process(process, warnings),
        None => Ok(()),
    })
}

/// A process.json of `exec`, and warnings.
pub fn read_process(bytes: &[u8]) -> serde_json::Result<(Process, Vec<String>)> {
    read(bytes, mend_process)
}

fn read<T: DeserializeOwned>(
    bytes: &[u8],
    mend: impl FnOnce(&mut Value, &mut Vec<String>) -> serde_json::Result<()>,
) -> serde_json::Result<(T, Vec<String>)> {
    let refusal = match serde_json::from_slice(bytes) {
        Ok(read) => return Ok((read, Vec::new())),
        Err(error) => error,
    };
    let mut warnings = Vec::new();
    let Ok(mut value) = serde_json::from_slice(bytes) else {
        return Err(refusal);
    };
    mend(&mut value, &mut warnings)?;
    // The first refusal knows the line.
    serde_json::from_value(value)
        .map(|read| (read, warnings))
        .map_err(|_: serde_json::Error| refusal)
}

fn mend_process(process: &mut Value, warnings: &mut Vec<String>) -> serde_json::Result<()> {
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    // The words are runc's, which callers look for.
    let mut unknown: Vec<String> = Vec::new();
    for names in sets
        .into_iter()
        .flat_map(|sets| sets.values_mut())
        .filter_map(Value::as_array_mut)
    {
        names.retain(|name| {
            let Some(text) = name.as_str() else {
                return true;
            };
            let known = is_capability(text);
            if !known && !unknown.iter().any(|other| other == text) {
                unknown.push(text.to_owned());
            }
            known
        });
    }
    if !unknown.is_empty() {
        warnings.push(format!(
            "ignoring unknown or unavailable capabilities: [{}]",
            unknown.join(" ")
        ));
    }
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, own)) = SCHEDULER_FLAGS
            .iter()
            .find(|(name, _)| flag.as_str() == Some(name))
        {
            *flag = Value::from(*own);
        }
    }
    mend_affinity(process)
}

/// The types refuse a list that is empty, which stands for none, and say of a wrong one neither whose it is nor what of it
/// is wrong.
fn mend_affinity(process: &mut Value) -> serde_json::Result<()> {
    let Some(lists) = process
        .get_mut("execCPUAffinity")
        .and_then(Value::as_object_mut)
    else {
        return Ok(());
    };
    for name in ["initial", "final"] {
        let Some(list) = lists.get(name).and_then(Value::as_str).map(affinity::tidy) else {
            continue;
        };
        if list.is_empty() {
            lists.remove(name);
            continue;
        }
        affinity::parse(&list).map_err(|problem| {
            serde_json::Error::custom(format!("process.execCPUAffinity.{name}: {problem}"))
        })?;
        lists.insert(name.to_owned(), list.into());
    }
    Ok(())
}

fn is_capability(name: &str) -> bool {
    name.strip_prefix("CAP_")
        .unwrap_or(name)
        .parse::<Capability>()
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: &str = r#"{"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["true"],
        "capabilities": {"bounding": ["CAP_KILL", "CAP_NONSENSE"], "effective": ["CAP_NONSENSE"]},
        "scheduler": {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}}"#;

    #[test]
    fn an_unknown_capability_is_a_warning_and_not_an_error() {
        let (process, warnings) = read_process(PROCESS.as_bytes()).unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(
            warnings,
            ["ignoring unknown or unavailable capabilities: [CAP_NONSENSE]"]
        );
        assert!(process.scheduler().as_ref().unwrap().flags().is_some());
    }

    #[test]
    fn a_list_of_cpus_is_read_as_other_runtimes_read_it_and_a_wrong_one_is_named() {
        let with = |affinity: &str| {
            let process = PROCESS.replacen('{', &format!("{{\"execCPUAffinity\": {affinity},"), 1);
            read_process(process.as_bytes())
        };
        let (process, _) = with(r#"{"initial": " 0, 1-2,", "final": ""}"#).unwrap();
        let affinity = process.exec_cpu_affinity().as_ref().unwrap();
        assert_eq!(affinity.initial().as_deref(), Some("0,1-2"));
        assert_eq!(*affinity.cpu_affinity_final(), None);
        let error = with(r#"{"initial": "0", "final": "1-x"}"#).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("process.execCPUAffinity.final: \"1-x\""),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_otherwise_is_told_with_its_line() {
        let wrong = PROCESS.replace("\"cwd\": \"/\"", "\"cwd\": 7");
        let error = read_process(wrong.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
