//! `spec`: a config.json to begin with.

use std::path::PathBuf;

use serde_json::json;

use super::CliError;
use super::arguments::Arguments;

/// `spec [-b BUNDLE] [--rootless]`.
pub(super) fn spec(mut words: Arguments) -> Result<u8, CliError> {
    let mut bundle = PathBuf::from(".");
    let mut rootless = false;
    while let Some(flag) = words.flag() {
        match flag.name.as_str() {
            "bundle" | "b" => bundle = words.value(&flag)?.into(),
            "rootless" => rootless = flag.is_on(),
            _ => return Err(flag.unknown("spec")),
        }
    }
    words.end()?;
    let path = bundle.join("config.json");
    if path.exists() {
        return Err(CliError::usage(format!(
            "{} exists; remove it first",
            path.display()
        )));
    }
    let mut spec = template();
    if rootless {
        for_a_user(&mut spec);
    }
    let mut text = serde_json::to_string_pretty(&spec).unwrap_or_default();
    text.push('\n');
    std::fs::write(&path, text).map_err(|error| CliError::file("write", &path, error))?;
    Ok(0)
}

/// What a user who is not root can run: in a user namespace, where the user is root; with the host's network, for its
/// own nobody could connect to anything, and so with the host's /sys; without limits, for the cgroups are not the user's.
fn for_a_user(spec: &mut serde_json::Value) {
    let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    spec["linux"]["uidMappings"] = map(rustix::process::geteuid().as_raw());
    spec["linux"]["gidMappings"] = map(rustix::process::getegid().as_raw());
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
    }
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup" && mount["type"] != "sysfs");
        for mount in mounts.iter_mut() {
            // Ids that the namespace does not have.
            if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|option| option != "gid=5");
            }
        }
        mounts.push(
            json!({"destination": "/sys", "type": "none", "source": "/sys",
             "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}),
        );
    }
}

fn template() -> serde_json::Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": crate::container::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "gantry",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_users_template_asks_for_nothing_that_needs_root() {
        let mut template = super::template();
        super::for_a_user(&mut template);
        let spec: oci_spec::runtime::Spec = serde_json::from_value(template).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none());
        assert_eq!(linux.uid_mappings().as_ref().unwrap().len(), 1);
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains(r#""type":"user""#) && !text.contains(r#""type":"network""#));
    }

    #[test]
    fn the_template_is_a_valid_specification() {
        let spec: oci_spec::runtime::Spec = serde_json::from_value(super::template()).unwrap();
        assert_eq!(
            spec.process().as_ref().unwrap().cwd(),
            std::path::Path::new("/")
        );
    }
}
