//! `linux.netDevices`: devices of the host that move into the container's network namespace, with their permanent addresses.
//!
//! ```text
//! host                               container
//! addresses are read, device down
//!  ├─ moved, and renamed with it ───► addresses are added, device up
//!  ◄─ moved back under its old name ─┤ where the creation fails
//! ```
//! All of it is the parent's work, from two sockets, one opened in each namespace. Once the container is made its devices
//! are the namespace's: when that ends the kernel gives physical ones back to the host and ends the others, as the
//! specification wants it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};

use super::context::During;
use super::error::{Error, Result};
use super::links::{Address, Link, Links};
use super::namespaces::{Join, Lent, Namespaces};

/// IFNAMSIZ, less the null byte.
pub(super) const LONGEST_NAME: usize = 15;
/// Where the kernel puts a number.
const NUMBER: &str = "%d";
const OWN_NAMESPACE: &str = "/proc/self/ns/net";

/// A device, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlannedNetDevice {
    /// On the host.
    name: String,
    /// In the container; with `%d` a template of it.
    inside: String,
}

impl PlannedNetDevice {
    fn is_template(&self) -> bool {
        self.inside.contains(NUMBER)
    }

    fn field(&self) -> String {
        format!("linux.netDevices.{}", self.name)
    }
}

/// Checks what can be checked before there is a container: the names, that the host has the devices, and that a network
/// namespace which is joined has none of these names.
pub(super) fn plan(spec: &Spec, namespaces: &Namespaces) -> Result<Vec<PlannedNetDevice>> {
    let devices = named(spec)?;
    if devices.is_empty() {
        return Ok(devices);
    }
    if !namespaces.separate(Kind::Network) {
        return Err(Error::invalid(
            "linux.netDevices",
            "given without a network namespace to move them to: add {\"type\": \"network\"} to linux.namespaces",
        ));
    }
    let host = open_links("of the host")?;
    for device in &devices {
        if find(&host, &device.name)?.is_none() {
            return Err(Error::invalid(
                device.field(),
                format!(
                    "the host has no network device {:?}; `ip link` lists those it has",
                    device.name
                ),
            ));
        }
    }
    if let Some(join) = namespaces
        .join
        .iter()
        .find(|join| join.kind == Kind::Network)
    {
        check_joined(&devices, join)?;
    }
    Ok(devices)
}

/// The names, in their order: two runs of one specification do the same.
fn named(spec: &Spec) -> Result<Vec<PlannedNetDevice>> {
    let mut devices: Vec<PlannedNetDevice> = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.net_devices().as_ref())
        .into_iter()
        .flatten()
        .map(|(name, device)| PlannedNetDevice {
            name: name.clone(),
            inside: device
                .name()
                .clone()
                .filter(|inside| !inside.is_empty())
                .unwrap_or_else(|| name.clone()),
        })
        .collect();
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    for (index, device) in devices.iter().enumerate() {
        let refuse = |problem: String| Err(Error::invalid(device.field(), problem));
        if let Some(problem) = wrong_name(&device.name) {
            return refuse(format!("{:?} {problem}", device.name));
        }
        if device.name == "lo" {
            return refuse("every namespace has its own, which cannot leave it".to_owned());
        }
        let inside = device.inside.replacen(NUMBER, "0", 1);
        if let Some(problem) = wrong_name(&inside) {
            return refuse(format!("name {:?} {problem}", device.inside));
        }
        if inside.contains('%') {
            return refuse(format!(
                "name {:?}: a template has {NUMBER} once and no other %",
                device.inside
            ));
        }
        if device.inside == "lo" {
            return refuse("name \"lo\" is the container's own loopback device's".to_owned());
        }
        if !device.is_template()
            && let Some(other) = devices[..index]
                .iter()
                .find(|other| other.inside == device.inside)
        {
            return refuse(format!(
                "name {:?} is also the one of {:?}: give one of them another, or one with {NUMBER}",
                device.inside, other.name
            ));
        }
    }
    Ok(devices)
}

/// What the kernel would have against a name (`dev_valid_name`).
fn wrong_name(name: &str) -> Option<String> {
    let wrong = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Some(format!("is not 1 to {LONGEST_NAME} characters long"));
    }
    if name == "." || name == ".." || name.bytes().any(wrong) {
        return Some("has a character that no network device can have in its name".to_owned());
    }
    None
}

fn check_joined(devices: &[PlannedNetDevice], join: &Join) -> Result<()> {
    let place = join.path.display();
    let own = rustix::fs::stat(OWN_NAMESPACE).during("look at", OWN_NAMESPACE)?;
    let theirs = rustix::fs::fstat(&join.fd).during("look at", &place)?;
    if (own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino) {
        return Err(Error::invalid(
            "linux.netDevices",
            format!(
                "the network namespace {place} is the host's own: there is nowhere to move them to"
            ),
        ));
    }
    let inside = links_in(join)?;
    for device in devices.iter().filter(|device| !device.is_template()) {
        if find(&inside, &device.inside)?.is_some() {
            return Err(Error::invalid(
                device.field(),
                format!(
                    "the network namespace {place} has a device {:?} already: give another name, or one with {NUMBER}",
                    device.inside
                ),
            ));
        }
    }
    Ok(())
}

fn open_links(whose: &str) -> Result<Links> {
    Links::open().during("list network devices", whose)
}

fn find(links: &Links, name: &str) -> Result<Option<Link>> {
    links.find(name).during("look for network device", name)
}

fn links_in(namespace: &Join) -> Result<Links> {
    let mut lent = Lent::default();
    lent.to(namespace)?;
    open_links("of the container")
}

/// Devices on their way, and both ends of it.
#[derive(Debug)]
pub(super) struct Given {
    host: Links,
    host_namespace: OwnedFd,
    inside: Links,
    inside_namespace: OwnedFd,
    devices: Vec<GivenDevice>,
}

/// What is to be known to undo it.
#[derive(Debug)]
struct GivenDevice {
    on_host: Link,
    addresses: Vec<Address>,
    /// The name that it had first in the container.
    transit: String,
    /// In the container, once it has been seen there.
    inside: Option<Link>,
}

impl Given {
    /// Between this process' network namespace and that of the container's first process, or the one that it will join.
    pub(super) fn between(namespaces: &Namespaces, pid: i32) -> Result<Self> {
        let joined = namespaces
            .join
            .iter()
            .find(|join| join.kind == Kind::Network);
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let inside = match joined {
            Some(join) => Join {
                kind: Kind::Network,
                path: join.path.clone(),
                fd: join.fd.try_clone().during("keep", join.path.display())?,
            },
            None => Join {
                kind: Kind::Network,
                fd: open(&path)?,
                path,
            },
        };
        Ok(Self {
            host: open_links("of the host")?,
            host_namespace: open(Path::new(OWN_NAMESPACE))?,
            inside: links_in(&inside)?,
            inside_namespace: inside.fd,
            devices: Vec::new(),
        })
    }

    /// Moves a device into the container. After a failure too it is to be taken back.
    pub(super) fn give(&mut self, device: &PlannedNetDevice) -> Result<()> {
        let Some(on_host) = find(&self.host, &device.name)? else {
            return Err(Error::invalid(device.field(), "it has gone from the host"));
        };
        let object = &device.name;
        let addresses = self
            .host
            .addresses(&on_host)
            .during("read addresses of network device", object)?;
        let index = on_host.index;
        // What the kernel makes of a template cannot be foretold. A name that nobody has leads to the device meanwhile.
        let transit = if device.is_template() {
            format!("_mv{index}")
        } else {
            device.inside.clone()
        };
        self.devices.push(GivenDevice {
            on_host,
            addresses,
            transit: transit.clone(),
            inside: None,
        });
        self.host
            .set_up(index, false)
            .during("set down network device", object)?;
        self.host
            .send_away(index, self.inside_namespace.as_fd(), &transit)
            .map_err(|error| not_moved(device, &transit, error))?;
        let mut link = self.seen_inside(&transit)?;
        if device.is_template() {
            self.inside
                .rename(link.index, &device.inside)
                .during("name network device", &device.inside)?;
            link = self
                .inside
                .at(link.index)
                .during("look for network device", &device.inside)?
                .ok_or_else(|| gone(&device.inside))?;
        }
        let Some(given) = self.devices.last_mut() else {
            return Ok(());
        };
        given.inside = Some(link.clone());
        for address in &given.addresses {
            self.inside
                .add(&link, address)
                .during("add address to network device", &link.name)?;
        }
        self.inside
            .set_up(link.index, true)
            .during("set up network device", &link.name)
    }

    fn seen_inside(&mut self, name: &str) -> Result<Link> {
        let link = find(&self.inside, name)?.ok_or_else(|| gone(name))?;
        if let Some(given) = self.devices.last_mut() {
            given.inside = Some(link.clone());
        }
        Ok(link)
    }

    /// Moves everything back that was moved, as it was, and tells of all that it could not.
    pub(super) fn take_back(&self) -> Vec<Error> {
        let back = self.devices.iter().rev().map(|device| {
            self.take_one_back(device)
                .during("give back network device", &device.on_host.name)
        });
        back.filter_map(Result::err).collect()
    }

    fn take_one_back(&self, device: &GivenDevice) -> io::Result<()> {
        let name = &device.on_host.name;
        if let Some(there) = self.whereabouts(device)? {
            self.inside.set_up(there.index, false)?;
            self.inside
                .send_away(there.index, self.host_namespace.as_fd(), name)?;
        }
        let link = self
            .host
            .find(name)?
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        // Setting a device down costs it those of IPv6 even where it stayed.
        for address in &device.addresses {
            self.host.add(&link, address)?;
        }
        self.host.set_up(link.index, device.on_host.up)
    }

    /// Where it is in the container, if it got there.
    fn whereabouts(&self, device: &GivenDevice) -> io::Result<Option<Link>> {
        if let Some(link) = &device.inside {
            return self.inside.at(link.index);
        }
        // A move can fail before or after it; what has the device's number on the host is the device.
        if self
            .host
            .at(device.on_host.index)?
            .is_some_and(|link| link.name == device.on_host.name)
        {
            return Ok(None);
        }
        match self.inside.find(&device.on_host.name)? {
            None => self.inside.find(&device.transit),
            found => Ok(found),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    Ok(File::open(path)
        .during("open namespace", path.display())?
        .into())
}

fn gone(name: &str) -> Error {
    Error::step(
        "look for network device",
        format!("{name} in the container, where it was moved"),
        io::Error::from_raw_os_error(libc::ENODEV),
    )
}

fn not_moved(device: &PlannedNetDevice, name: &str, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EEXIST) => Error::invalid(
            device.field(),
            format!(
                "the container's network namespace has a device {name:?} already: give another name, or one with {NUMBER}"
            ),
        ),
        Some(libc::EINVAL | libc::EOPNOTSUPP) => Error::invalid(
            device.field(),
            "a device of this kind cannot leave its network namespace (a bridge or a tunnel's first device, say)",
        ),
        _ => Error::step("move network device", &device.name, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &str) -> Result<Vec<(String, String)>> {
        let text = format!(r#"{{"ociVersion":"1.3.0","linux":{{"netDevices":{json}}}}}"#);
        let devices = named(&serde_json::from_str(&text).unwrap())?;
        Ok(devices
            .into_iter()
            .map(|device| (device.name, device.inside))
            .collect())
    }

    #[test]
    fn a_device_keeps_its_name_unless_it_is_given_another() {
        let devices = names(r#"{"eth1":{"name":"eth%d"},"eth0":{},"b":{"name":""}}"#).unwrap();
        let expected = [("b", "b"), ("eth0", "eth0"), ("eth1", "eth%d")];
        assert_eq!(
            devices,
            expected.map(|(name, inside)| (name.to_owned(), inside.to_owned()))
        );
    }

    #[test]
    fn a_name_that_no_device_can_have_is_refused_by_its_field() {
        for (json, said) in [
            (r#"{"lo":{}}"#, "cannot leave"),
            (r#"{"a":{"name":"lo"}}"#, "loopback"),
            (r#"{"a":{"name":"sixteen-letters!"}}"#, "1 to 15"),
            (r#"{"a":{"name":"b/c"}}"#, "character"),
            (r#"{"a":{"name":"b c"}}"#, "character"),
            (r#"{"a":{"name":"%s"}}"#, "once"),
            (r#"{"a":{"name":"%d%d"}}"#, "once"),
            (r#"{"a":{"name":"c"},"b":{"name":"c"}}"#, "another"),
        ] {
            let error = names(json).unwrap_err().to_string();
            assert!(error.starts_with("linux.netDevices."), "{error}");
            assert!(error.contains(said), "{json}: {error}");
        }
        // The kernel tells them apart.
        names(r#"{"a":{"name":"c%d"},"b":{"name":"c%d"}}"#).unwrap();
    }
}
