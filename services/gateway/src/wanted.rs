//! What a person asked for: the whole of a container's wanted configuration, as
//! it was given. Everything absent comes from the image, then from the engine's
//! defaults, when the container is created or started.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The engine's own OCI runtime.
pub const OWN_RUNTIME: &str = "gantry";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wanted {
    /// A name, an id, a unique prefix of an id, or a digest.
    pub image: String,
    pub platform: Option<Platform>,
    /// Empty: the image's CMD, unless `entrypoint` is given.
    pub command: Vec<String>,
    /// None: the image's. Empty: none.
    pub entrypoint: Option<Vec<String>>,
    /// "KEY=value"; "KEY" alone takes the variable out.
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub hostname: String,
    pub domainname: String,
    pub tty: bool,
    pub stdin_open: bool,
    pub labels: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    /// As given; see [`NetworkMode`].
    pub network_mode: String,
    pub ports: Vec<PortMapping>,
    pub publish_all: bool,
    pub resources: Resources,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub privileged: bool,
    pub read_only: bool,
    pub security_opts: Vec<String>,
    pub ulimits: Vec<Ulimit>,
    pub init: bool,
    pub auto_remove: bool,
    pub stop_signal: String,
    pub stop_timeout_seconds: Option<i32>,
    pub restart_policy: RestartPolicy,
    /// None: the engine's default.
    pub log: Option<LogOptions>,
    /// "host:address".
    pub extra_hosts: Vec<String>,
    pub dns_servers: Vec<String>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    pub devices: Vec<Device>,
    pub sysctls: BTreeMap<String, String>,
    /// 0: 64 MiB.
    pub shm_size_bytes: u64,
    /// "host", "private" or "container:ID". Empty: private.
    pub pid_mode: String,
    /// Also "shareable", and "none": private, and without /dev/shm.
    pub ipc_mode: String,
    pub uts_mode: String,
    pub cgroupns_mode: String,
    pub groups: Vec<String>,
    pub oom_score_adj: i32,
    pub ip_address: String,
    pub annotations: BTreeMap<String, String>,
    pub exposed_ports: Vec<String>,
    pub health: HealthWanted,
    pub on_unhealthy: OnUnhealthy,
    /// "TYPE MAJOR:MINOR ACCESS".
    pub device_cgroup_rules: Vec<String>,
    /// Empty or "host": the host's.
    pub userns_mode: String,
    /// Containers whose binds and volumes it has too: "NAME[:ro|rw]".
    pub volumes_from: Vec<String>,
    /// Empty, "gantry": the engine's own.
    pub runtime: String,
    /// Empty: the engine's own.
    pub cgroup_parent: String,
    /// Hardware address on the network. Empty: one that follows from its address.
    pub mac_address: String,
    /// Which streams whoever created it listens to.
    pub attached: Attached,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attached {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    #[default]
    Bind,
    Tmpfs,
    Volume,
    Image,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub kind: MountKind,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// Empty: "rprivate".
    pub propagation: String,
    /// 0: half of the memory.
    pub tmpfs_size_bytes: u64,
    /// 0: 1777.
    pub tmpfs_mode: u32,
    pub create_source: bool,
    pub non_recursive: bool,
    pub options: Vec<String>,
    /// An empty volume stays empty.
    pub volume_no_copy: bool,
    /// Of a volume that is not there yet. Empty: "local".
    pub volume_driver: String,
    pub volume_options: BTreeMap<String, String>,
    pub volume_labels: BTreeMap<String, String>,
    /// A part of the volume or image. Empty: all of it.
    pub subpath: String,
    pub id_map: Option<IdMap>,
    /// What is mounted below a read-only source stays writable.
    pub read_only_non_recursive: bool,
    /// A volume that goes with the last container that uses it. Not asked for:
    /// found out.
    pub anonymous: bool,
    /// A volume that was another container's: it is not made anew.
    pub volume_must_exist: bool,
    /// As it was written, where that was short: for `inspect`.
    pub short_form: Option<String>,
    /// What the image service has for a volume or an image. None: not asked yet.
    pub found: Option<Found>,
}

/// What is to be mounted for a volume or an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    /// Name of the volume. Empty: an image.
    pub volume: String,
    pub driver: String,
    /// The directory of the volume's content, for a person.
    pub mountpoint: String,
    /// "bind", "tmpfs" or "overlay".
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
    /// Directories of an image's layers, the top-most first.
    pub layers: Vec<String>,
    pub image_id: String,
}

/// How owners of files are seen through a mount. Both empty: as the container's
/// user namespace maps them; one empty: these as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMap {
    pub uids: Vec<IdRange>,
    pub gids: Vec<IdRange>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub on_disk: u32,
    /// Seen through the mount, on the host.
    pub seen: u32,
    pub count: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "tcp" | "" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub host_ip: String,
    /// 0: one that is free.
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// 0: no limit.
    pub memory_bytes: u64,
    /// With swap. 0: twice the memory; -1: no limit.
    pub memory_swap_bytes: i64,
    pub memory_reservation_bytes: u64,
    /// Billionths. 0: no limit.
    pub nano_cpus: u64,
    /// 0: the kernel's 1024.
    pub cpu_shares: u64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// 0: the engine's default; -1: no limit.
    pub pids_limit: i64,
    pub cpu_period_micros: u64,
    pub cpu_quota_micros: i64,
    pub blkio_weight: u32,
    pub oom_kill_disable: bool,
    /// 10 to 1000.
    pub blkio_weight_devices: Vec<DeviceLimit>,
    /// Bytes per second.
    pub device_read_bps: Vec<DeviceLimit>,
    pub device_write_bps: Vec<DeviceLimit>,
    /// Operations per second.
    pub device_read_iops: Vec<DeviceLimit>,
    pub device_write_iops: Vec<DeviceLimit>,
    /// 0: the kernel's default.
    pub cpu_realtime_runtime_micros: i64,
    pub cpu_realtime_period_micros: u64,
    /// 0 to 100. None: as the host's.
    pub memory_swappiness: Option<u32>,
}

/// A limit for one block device of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLimit {
    pub host_path: String,
    pub value: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    pub name: String,
    /// -1: no limit.
    pub soft: i64,
    pub hard: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: String,
    /// Empty: the same.
    pub container_path: String,
    /// Empty: "rwm".
    pub permissions: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartName {
    #[default]
    No,
    OnFailure,
    Always,
    UnlessStopped,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub name: RestartName,
    /// For "on-failure". 0: no limit.
    pub maximum_retry_count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    pub enabled: bool,
    /// 0: 10 MiB.
    pub max_segment_bytes: u64,
    /// 0: 3.
    pub max_segments: u32,
}

/// A health check; what is absent (empty, or 0) is the image's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthWanted {
    /// "NONE"; "CMD" and its words; "CMD-SHELL" and a script.
    pub test: Vec<String>,
    pub interval_nanos: i64,
    pub timeout_nanos: i64,
    pub start_period_nanos: i64,
    pub start_interval_nanos: i64,
    pub retries: i32,
}

/// What is done when a container is found unhealthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnhealthy {
    #[default]
    None,
    Restart,
    Stop,
    Kill,
}

/// Which network a container is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// A network of the network service, by name.
    Network(String),
    /// The host's.
    Host,
    /// Only a loopback interface.
    None,
    /// That of another container.
    Container(String),
}

impl NetworkMode {
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "" | "default" | "bridge" => Self::Network("bridge".to_owned()),
            "host" => Self::Host,
            "none" => Self::None,
            other => match other.strip_prefix("container:") {
                Some(id) => Self::Container(id.to_owned()),
                None => Self::Network(other.to_owned()),
            },
        }
    }
}

/// Whose namespace of one kind a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceMode {
    Private,
    Host,
    Container(String),
}

impl NamespaceMode {
    /// None: not one of the three forms.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "private" => Some(Self::Private),
            "host" => Some(Self::Host),
            other => other
                .strip_prefix("container:")
                .filter(|id| !id.is_empty())
                .map(|id| Self::Container(id.to_owned())),
        }
    }
}

impl Wanted {
    /// The IPC namespace, which has two more words for one of its own. None: the
    /// mode is unknown.
    #[must_use]
    pub fn ipc(&self) -> Option<NamespaceMode> {
        match self.ipc_mode.as_str() {
            "none" | "shareable" => Some(NamespaceMode::Private),
            mode => NamespaceMode::parse(mode),
        }
    }

    #[must_use]
    pub fn network(&self) -> NetworkMode {
        NetworkMode::parse(&self.network_mode)
    }

    /// The OCI runtime that makes it, where that is not the engine's own.
    #[must_use]
    pub fn other_runtime(&self) -> Option<&str> {
        (!matches!(self.runtime.as_str(), "" | OWN_RUNTIME)).then_some(&self.runtime)
    }
}
