//! Kernel parameters that belong to a namespace. Any other would change the host's.

use std::collections::HashMap;

use oci_spec::runtime::LinuxNamespaceType;

use super::context::During;
use super::error::{Error, Result};
use super::namespaces::Namespaces;

const IPC: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.msg_next_id",
];

/// Checks that each belongs to a namespace that is the container's own.
pub(super) fn check(
    wanted: &HashMap<String, String>,
    namespaces: &Namespaces,
    domainname: Option<&str>,
) -> Result<()> {
    for (name, value) in wanted {
        let field = || format!("linux.sysctl[{name:?}]");
        let dotted = name.replace('/', ".");
        if dotted.split('.').any(|part| part.is_empty()) {
            return Err(Error::invalid(field(), "is not the name of a parameter"));
        }
        if dotted == "kernel.hostname" {
            return Err(Error::invalid(
                field(),
                "is not set by a sysctl but by the field hostname",
            ));
        }
        if dotted == "kernel.domainname"
            && domainname.is_some_and(|name| !name.is_empty() && name != value)
        {
            return Err(Error::invalid(
                field(),
                "the field domainname has another value",
            ));
        }
        let (kind, which) = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            (LinuxNamespaceType::Ipc, "ipc")
        } else if dotted.starts_with("net.") {
            (LinuxNamespaceType::Network, "network")
        } else if dotted == "kernel.domainname" {
            (LinuxNamespaceType::Uts, "uts")
        } else {
            return Err(Error::invalid(
                field(),
                "is not in a namespace of its own: it would change the host",
            ));
        };
        if !namespaces.separate(kind) {
            return Err(Error::invalid(
                field(),
                format!(
                    "needs a {which} namespace of the container's own: it would change the host"
                ),
            ));
        }
    }
    Ok(())
}

/// Writes them, through the host's /proc: what is written to belongs to the writer's namespaces.
pub(super) fn set(wanted: &HashMap<String, String>) -> Result<()> {
    for (name, value) in wanted {
        // An interface's name may have a dot in it; then the parameter is written with slashes.
        let path = if name.contains('/') {
            name.clone()
        } else {
            name.replace('.', "/")
        };
        std::fs::write(format!("/proc/sys/{path}"), value)
            .during("set sysctl", format_args!("{name}={value}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_of_the_host_is_refused() {
        let own = Namespaces {
            new: super::super::namespaces::flag(LinuxNamespaceType::Network),
            ..Namespaces::default()
        };
        let one = |name: &str| HashMap::from([(name.to_owned(), "1".to_owned())]);
        assert!(check(&one("net.ipv4.ip_forward"), &own, None).is_ok());
        assert!(check(&one("net/ipv4/conf/eth0.1/forwarding"), &own, None).is_ok());
        assert!(check(&one("kernel.shmmax"), &own, None).is_err());
        assert!(check(&one("vm.swappiness"), &own, None).is_err());
        assert!(check(&one("net.ipv4.ip_forward"), &Namespaces::default(), None).is_err());
        assert!(check(&one("net..ipv4"), &own, None).is_err());
    }

    #[test]
    fn a_name_has_one_field_that_sets_it() {
        let own = Namespaces {
            new: super::super::namespaces::flag(LinuxNamespaceType::Uts),
            ..Namespaces::default()
        };
        let one = |name: &str| HashMap::from([(name.to_owned(), "x".to_owned())]);
        assert!(check(&one("kernel.hostname"), &own, None).is_err());
        assert!(check(&one("kernel.domainname"), &own, None).is_ok());
        assert!(check(&one("kernel.domainname"), &own, Some("x")).is_ok());
        assert!(check(&one("kernel.domainname"), &own, Some("other")).is_err());
    }
}
