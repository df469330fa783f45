//! The spec's `linux.seccomp`: the default profile for a set of capabilities,
//! or a person's own profile in Docker's form.

use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};

use super::capabilities::Set;
use super::seccomp_table::{
    ALWAYS, CLONE_NAMESPACES, PERSONALITIES, VSOCK, WITH_CAPABILITY, architecture,
};
use crate::error::{Error, Result};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn allow(names: &[&str]) -> Value {
    json!({"names": names, "action": "SCMP_ACT_ALLOW"})
}

fn allow_where(name: &str, op: &str, value: u64, masked: Option<u64>) -> Value {
    let mut argument = json!({"index": 0, "value": value, "op": op});
    if let Some(masked) = masked {
        argument["valueTwo"] = json!(masked);
    }
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]})
}

/// The profile that was made last: most containers want the same.
static LAST: Mutex<Option<(Set, Value)>> = Mutex::new(None);

/// The default profile for a container with these capabilities.
#[must_use]
pub fn default_profile(capabilities: Set) -> Value {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some((set, profile)) if *set == capabilities => profile.clone(),
        _ => {
            let profile = make_default(capabilities);
            *last = Some((capabilities, profile.clone()));
            profile
        }
    }
}

fn make_default(capabilities: Set) -> Value {
    let mut names: Vec<&str> = ALWAYS
        .iter()
        .flat_map(|topic| topic.split_whitespace())
        .collect();
    let architecture = architecture();
    if let Some(architecture) = &architecture {
        names.extend(architecture.calls.split_whitespace());
    }
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            names.extend(calls.split_whitespace());
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut calls = vec![
        allow(&names),
        allow_where("socket", "SCMP_CMP_NE", VSOCK, None),
    ];
    for personality in PERSONALITIES {
        calls.push(allow_where("personality", "SCMP_CMP_EQ", personality, None));
    }
    if !capabilities.contains("CAP_SYS_ADMIN") {
        // New processes, but in no new namespaces. clone3's flags are behind a
        // pointer, which a filter cannot follow: "no such call" makes libraries
        // fall back to clone.
        let op = "SCMP_CMP_MASKED_EQ";
        calls.push(allow_where("clone", op, CLONE_NAMESPACES, Some(0)));
        calls.push(json!({
            "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS,
        }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architecture.map(|architecture| architecture.names).unwrap_or_default(),
        "syscalls": calls,
    })
}

/// A profile in Docker's form: the OCI one with conditions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
}

/// This machine's architecture as Go's GOARCH.
fn goarch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Rule {
    fn applies(&self, capabilities: Set) -> bool {
        let held = |cap: &String| capabilities.contains(cap);
        let here = |arch: &String| arch == goarch();
        let includes = &self.includes;
        let excludes = &self.excludes;
        includes.caps.iter().flatten().all(held)
            && includes
                .arches
                .as_ref()
                .is_none_or(|arches| arches.is_empty() || arches.iter().any(here))
            && !excludes.caps.iter().flatten().any(held)
            && !excludes.arches.iter().flatten().any(here)
    }
}

/// A person's profile, its conditions resolved.
///
/// # Errors
/// It is not a profile.
pub fn own_profile(text: &str, capabilities: Set) -> Result<Value> {
    let profile: Profile = serde_json::from_str(text).map_err(|problem| {
        Error::invalid(
            "security-opt",
            format!("the seccomp profile is not one: {problem}"),
        )
    })?;
    let own = architecture().and_then(|architecture| architecture.names.first().copied());
    let mapped = profile
        .arch_map
        .into_iter()
        .flatten()
        .find(|map| Some(map.architecture.as_str()) == own)
        .map(|map| {
            let mut all = vec![map.architecture];
            all.extend(map.sub_architectures.into_iter().flatten());
            all
        });
    let calls: Vec<Value> = profile
        .syscalls
        .into_iter()
        .flatten()
        .filter(|rule| rule.applies(capabilities))
        .map(|rule| {
            let names: Vec<String> = rule.names.into_iter().flatten().chain(rule.name).collect();
            let mut call = json!({"names": names, "action": rule.action});
            if let Some(errno) = rule.errno_ret {
                call["errnoRet"] = json!(errno);
            }
            if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
                call["args"] = json!(args);
            }
            call
        })
        .collect();
    let mut seccomp = json!({"defaultAction": profile.default_action, "syscalls": calls});
    if let Some(errno) = profile.default_errno_ret {
        seccomp["defaultErrnoRet"] = json!(errno);
    }
    if let Some(architectures) = mapped.or(profile.architectures) {
        seccomp["architectures"] = json!(architectures);
    }
    if let Some(flags) = profile.flags {
        seccomp["flags"] = json!(flags);
    }
    Ok(seccomp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::capabilities;

    fn allowed(profile: &Value, name: &str) -> bool {
        profile["syscalls"].as_array().unwrap().iter().any(|call| {
            call["action"] == "SCMP_ACT_ALLOW"
                && call.get("args").is_none()
                && call["names"].as_array().unwrap().contains(&json!(name))
        })
    }

    fn with(add: &[&str]) -> Value {
        let add: Vec<String> = add.iter().map(|cap| (*cap).to_owned()).collect();
        default_profile(capabilities::resolve(&add, &[], false, Set::EVERY).unwrap())
    }

    #[test]
    fn the_default_refuses_what_reaches_the_host() {
        let profile = with(&[]);
        for call in [
            "mount",
            "bpf",
            "reboot",
            "init_module",
            "keyctl",
            "add_key",
            "userfaultfd",
            "clone",
            "clone3",
            "unshare",
            "setns",
            "kexec_load",
            "open_by_handle_at",
            "io_uring_setup",
            "socket",
            "personality",
        ] {
            assert!(!allowed(&profile, call), "{call}");
        }
        for call in ["read", "execve", "ptrace", "chroot", "openat2", "futex"] {
            assert!(allowed(&profile, call), "{call}");
        }
    }

    #[test]
    fn a_capability_opens_its_calls() {
        let profile = with(&["SYS_ADMIN"]);
        for call in ["mount", "clone", "clone3", "unshare"] {
            assert!(allowed(&profile, call), "{call}");
        }
        let refused = profile["syscalls"].as_array().unwrap().iter();
        assert!(
            refused
                .clone()
                .all(|call| call["action"] == "SCMP_ACT_ALLOW")
        );
        assert!(!allowed(&profile, "reboot"));
        assert!(allowed(&with(&["SYS_BOOT"]), "reboot"));
    }

    #[test]
    fn no_call_is_named_twice() {
        let mut names: Vec<&str> = ALWAYS
            .iter()
            .flat_map(|topic| topic.split_whitespace())
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(all > 300);
    }

    #[test]
    fn conditions_of_an_own_profile_are_resolved() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW"},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["odd"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}}]}"#;
        let none = capabilities::resolve(&[], &[], false, Set::EVERY).unwrap();
        let profile = own_profile(text, none).unwrap();
        assert!(allowed(&profile, "read") && allowed(&profile, "clone"));
        assert!(!allowed(&profile, "mount") && !allowed(&profile, "odd"));
        assert!(own_profile("{", none).is_err());
    }
}
