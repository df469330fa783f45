//! Devices: what the container's cgroup allows, and the nodes it gets beside the
//! default ones (which the OCI runtime always makes).

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::wanted::{Device, Wanted};

/// Nodes below /dev that a container has of its own.
const OWN: [&str; 8] = [
    "pts", "shm", "mqueue", "fd", "console", "ptmx", "stdin", "core",
];

/// Character devices that every container may use: null, zero, full, random,
/// urandom, tty, ptmx.
const COMMON: [(i64, i64); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];

/// Major number of the terminals below /dev/pts.
const PTS_MAJOR: i64 = 136;

/// A device node of the host.
struct Node {
    kind: &'static str,
    major: u64,
    minor: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The node at `path`; None where it is something else.
fn node(path: &Path) -> Option<Node> {
    let metadata = fs::metadata(path).ok()?;
    let kind = if metadata.file_type().is_char_device() {
        "c"
    } else if metadata.file_type().is_block_device() {
        "b"
    } else {
        return None;
    };
    // The layout of dev_t (makedev(3)).
    let device = metadata.rdev();
    Some(Node {
        kind,
        major: ((device >> 8) & 0xfff) | ((device >> 32) & 0xffff_f000),
        minor: (device & 0xff) | ((device >> 12) & 0xffff_ff00),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// The spec's `linux.devices` and `linux.resources.devices`.
#[derive(Debug, Default)]
pub struct Devices {
    pub nodes: Vec<Value>,
    pub rules: Vec<Value>,
}

/// Everything for a privileged container; else the common devices and those
/// asked for.
///
/// # Errors
/// A device is not there or is none, or its permissions are malformed.
pub fn devices(wanted: &Wanted) -> Result<Devices> {
    if wanted.privileged {
        let mut nodes = Vec::new();
        host_nodes(Path::new("/dev"), &mut nodes);
        return Ok(Devices {
            nodes,
            rules: vec![json!({"allow": true, "access": "rwm"})],
        });
    }
    let mut all = Devices {
        nodes: Vec::new(),
        rules: vec![
            json!({"allow": false, "access": "rwm"}),
            // Any node may be made; only the following may be opened.
            json!({"allow": true, "type": "c", "access": "m"}),
            json!({"allow": true, "type": "b", "access": "m"}),
        ],
    };
    for (major, minor) in COMMON {
        all.rules.push(
            json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}),
        );
    }
    all.rules
        .push(json!({"allow": true, "type": "c", "major": PTS_MAJOR, "access": "rwm"}));
    for device in &wanted.devices {
        add(device, &mut all)?;
    }
    for rule in &wanted.device_cgroup_rules {
        all.rules.push(parse_rule(rule)?);
    }
    Ok(all)
}

/// "c 42:* rmw".
fn parse_rule(text: &str) -> Result<Value> {
    let wrong = || {
        Error::invalid(
            "device-cgroup-rule",
            format!("{text:?} is not \"TYPE MAJOR:MINOR ACCESS\", as in \"c 42:* rmw\""),
        )
    };
    let words: Vec<&str> = text.split(' ').collect();
    let &[kind, numbers, access] = words.as_slice() else {
        return Err(wrong());
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    let known = matches!(kind, "a" | "b" | "c")
        && (1..=3).contains(&access.len())
        && access.bytes().all(|letter| b"rwm".contains(&letter));
    if !known {
        return Err(wrong());
    }
    let mut rule = json!({"allow": true, "type": kind, "access": access});
    for (field, number) in [("major", major), ("minor", minor)] {
        // Absent is any.
        if number != "*" {
            rule[field] = json!(number.parse::<u32>().map_err(|_| wrong())?);
        }
    }
    Ok(rule)
}

/// Major and minor number of a block device of this machine.
///
/// # Errors
/// It is none.
pub fn block_device(field: &'static str, path: &str) -> Result<(u64, u64)> {
    match node(Path::new(path)) {
        Some(node) if node.kind == "b" => Ok((node.major, node.minor)),
        _ => Err(Error::invalid(
            field,
            format!("{path:?} is no block device of this machine"),
        )),
    }
}

fn add(device: &Device, all: &mut Devices) -> Result<()> {
    let permissions = match device.permissions.as_str() {
        "" => "rwm",
        given if given.chars().all(|letter| "rwm".contains(letter)) => given,
        given => {
            return Err(Error::invalid(
                "device",
                format!("the permissions {given:?} are not of 'r', 'w' and 'm'"),
            ));
        }
    };
    let host = Path::new(&device.host_path);
    let Some(node) = node(host) else {
        return Err(Error::invalid(
            "device",
            format!("{:?} is no device of this machine", device.host_path),
        ));
    };
    let path = if device.container_path.is_empty() {
        &device.host_path
    } else {
        &device.container_path
    };
    all.rules.push(json!({
        "allow": true, "type": node.kind, "major": node.major, "minor": node.minor,
        "access": permissions,
    }));
    all.nodes.push(describe(path, &node));
    Ok(())
}

fn describe(path: &str, node: &Node) -> Value {
    json!({
        "path": path, "type": node.kind, "major": node.major, "minor": node.minor,
        "fileMode": node.mode, "uid": node.uid, "gid": node.gid,
    })
}

/// All device nodes below `directory`. What cannot be read is left out.
fn host_nodes(directory: &Path, nodes: &mut Vec<Value>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if OWN.iter().any(|own| name == *own) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => host_nodes(&path, nodes),
            // A link would be followed to a node that is in the list anyway.
            Ok(kind) if kind.is_symlink() => {}
            Ok(_) => {
                if let (Some(text), Some(node)) = (path.to_str(), node(&path)) {
                    nodes.push(describe(text, &node));
                }
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_written_as_dockers_is() {
        assert_eq!(
            parse_rule("c 42:* rmw").unwrap(),
            json!({"allow": true, "type": "c", "major": 42, "access": "rmw"})
        );
        assert_eq!(
            parse_rule("a *:* r").unwrap(),
            json!({"allow": true, "type": "a", "access": "r"})
        );
        for wrong in [
            "", "c 42 r", "x 1:1 r", "c 1:1", "c 1:1 q", "c 1:1 ", "c a:1 r", "c  1:1 r",
            "c -1:1 r",
        ] {
            assert!(parse_rule(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_device_is_allowed_and_made() {
        let wanted = Wanted {
            devices: vec![Device {
                host_path: "/dev/null".to_owned(),
                container_path: "/dev/nothing".to_owned(),
                permissions: "r".to_owned(),
            }],
            ..Wanted::default()
        };
        let all = devices(&wanted).unwrap();
        assert_eq!(all.nodes[0]["path"], "/dev/nothing");
        assert_eq!(
            (&all.nodes[0]["major"], &all.nodes[0]["minor"]),
            (&json!(1), &json!(3))
        );
        assert_eq!(all.rules.last().unwrap()["access"], "r");
        assert_eq!(all.rules[0], json!({"allow": false, "access": "rwm"}));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (path, permissions) in [
            ("/etc/passwd", ""),
            ("/dev/none-such", ""),
            ("/dev/null", "x"),
        ] {
            let wanted = Wanted {
                devices: vec![Device {
                    host_path: path.to_owned(),
                    container_path: String::new(),
                    permissions: permissions.to_owned(),
                }],
                ..Wanted::default()
            };
            assert!(devices(&wanted).is_err(), "{path} {permissions}");
        }
    }
}
