//! The options that say what a container is to be: those of `run` and `create`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use gantry_proto::gateway::v1::{
    AttachedStreams, ContainerConfig, Device, DeviceLimit, Entrypoint, Mount, MountType,
    PullPolicy, Resources, RestartPolicy, Ulimit,
};
use gantry_proto::network::v1::PortMapping;
use gantry_proto::types::v1::Platform;

use crate::content_trust::ContentTrust;
use crate::exit::Failure;
use crate::health_options::HealthOptions;
use crate::parse::{ParseError, environment, limits, mounts, ports, sizes};
use crate::refused_options::RefusedOptions;

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct ContainerOptions {
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// Name of the container
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Attach to stdin, stdout or stderr
    #[arg(short, long, value_name = "STREAM", value_parser = ["stdin", "stdout", "stderr"], ignore_case = true)]
    pub(crate) attach: Vec<String>,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing", value_parser = ["always", "missing", "never"])]
    pull: String,
    /// Say nothing of a pull
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Platform of the image: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,

    /// Program to run in place of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Set a variable: KEY=VALUE, or KEY for the caller's own
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group: NAME|ID[:GROUP]
    #[arg(short, long)]
    user: Option<String>,
    /// One more group for the program
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Run an init that reaps processes and passes on signals
    #[arg(long)]
    init: bool,
    /// Set a label
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// OCI runtime that makes the container: gantry (its own), a name of the configuration, a program in PATH, a path
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Set an annotation for the runtime
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// When to start the container again: no, on-failure[:TRIES], always, unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = limits::restart_policy)]
    restart: Option<RestartPolicy>,
    /// Signal that asks the container to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds from that signal to SIGKILL
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i32>,
    /// Where output is kept: cri, none
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Option of the log: max-size=SIZE, max-file=COUNT
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,

    /// Bind a path or a volume: SOURCE:TARGET[:OPTIONS]
    #[arg(short, long, value_name = "VOLUME", value_parser = mounts::volume)]
    volume: Vec<Mount>,
    /// Mount: type=bind|volume|tmpfs|image,source=…,target=…
    #[arg(long, value_parser = mounts::mount)]
    mount: Vec<Mount>,
    /// Mount a tmpfs: TARGET[:OPTIONS]
    #[arg(long, value_parser = mounts::tmpfs)]
    tmpfs: Vec<Mount>,
    /// Driver of the volumes of -v: local
    #[arg(long, value_name = "DRIVER")]
    volume_driver: Option<String>,
    /// Mount what another container has of binds and volumes: CONTAINER[:ro]
    #[arg(long, value_name = "CONTAINER")]
    volumes_from: Vec<String>,
    /// Make the container's root read-only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = sizes::size)]
    shm_size: Option<u64>,
    /// Add a device: HOST[:CONTAINER][:rwm]
    #[arg(long, value_parser = limits::device)]
    device: Vec<Device>,
    /// Devices it may use beside those it is given: "c 42:* rmw"
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,

    /// Publish a port: [[IP:]HOST:]CONTAINER[/PROTOCOL]
    #[arg(short, long, value_name = "PORT", value_parser = ports::published)]
    publish: Vec<Vec<PortMapping>>,
    /// Publish every exposed port on a free one
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Expose a port
    #[arg(long, value_name = "PORT", value_parser = ports::exposed)]
    expose: Vec<Vec<String>>,
    /// Network: bridge, host, none, container:NAME
    #[arg(long, alias = "net", value_name = "NETWORK")]
    network: Option<String>,
    /// Address on the network
    #[arg(long, value_name = "ADDRESS", value_parser = limits::address)]
    ip: Option<std::net::IpAddr>,
    /// Hardware address on the network, as 02:42:0a:00:00:05
    #[arg(long, value_name = "ADDRESS", value_parser = limits::mac_address)]
    mac_address: Option<String>,
    /// Host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Add a line to /etc/hosts: NAME:ADDRESS
    #[arg(long, value_name = "HOST", value_parser = limits::extra_host)]
    add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<std::net::IpAddr>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of resolv.conf
    #[arg(long, alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,

    /// Limit of memory
    #[arg(short, long, value_name = "BYTES", value_parser = sizes::size)]
    memory: Option<u64>,
    /// Limit of memory and swap together; -1 for none
    #[arg(long, value_name = "BYTES", value_parser = sizes::size_or_unlimited, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Memory that is left to it when the host is short
    #[arg(long, value_name = "BYTES", value_parser = sizes::size)]
    memory_reservation: Option<u64>,
    /// Let it hang and not be killed when it is out of memory
    #[arg(long)]
    oom_kill_disable: bool,
    /// How likely the kernel kills it when the host is out of memory
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true, value_parser = limits::oom_score)]
    oom_score_adj: Option<i32>,
    /// Number of CPUs
    #[arg(long, value_parser = limits::cpus)]
    cpus: Option<u64>,
    /// Relative weight of CPU time
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Period of CPU time, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time per period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPUs it may run on: 0-3,5
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Limit of processes and threads; -1 for none
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Relative weight of block I/O: 10-1000
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(10..=1000))]
    blkio_weight: Option<u32>,
    /// Relative weight of block I/O on one device: DEVICE:10-1000
    #[arg(long, value_name = "DEVICE:WEIGHT", value_parser = limits::device_number)]
    blkio_weight_device: Vec<DeviceLimit>,
    /// Bytes per second that it may read from a device
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = limits::device_bytes)]
    device_read_bps: Vec<DeviceLimit>,
    /// Bytes per second that it may write to a device
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = limits::device_bytes)]
    device_write_bps: Vec<DeviceLimit>,
    /// Reads per second from a device
    #[arg(long, value_name = "DEVICE:COUNT", value_parser = limits::device_number)]
    device_read_iops: Vec<DeviceLimit>,
    /// Writes per second to a device
    #[arg(long, value_name = "DEVICE:COUNT", value_parser = limits::device_number)]
    device_write_iops: Vec<DeviceLimit>,
    /// Time of each period that its real-time processes may use, in microseconds (cgroup v1)
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// Period of real-time CPU time, in microseconds (cgroup v1)
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<u64>,
    /// How readily its memory is swapped out: 0-100, -1 as the host (cgroup v1)
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1..=100))]
    memory_swappiness: Option<i32>,
    /// No kernel has this limit any more; it is accepted and has no effect
    #[arg(long, value_name = "BYTES", value_parser = sizes::size_or_unlimited, allow_hyphen_values = true)]
    kernel_memory: Option<i64>,
    /// Limit of a process: NAME=SOFT[:HARD]
    #[arg(long, value_parser = limits::ulimit)]
    ulimit: Vec<Ulimit>,
    /// Kernel parameter: KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl: Vec<String>,

    /// Give it all that the engine itself has
    #[arg(long)]
    privileged: bool,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=FILE|unconfined, systempaths=unconfined
    #[arg(long, value_name = "OPTION", value_parser = limits::security_option)]
    security_opt: Vec<String>,
    /// Process namespace: host, container:NAME
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// IPC namespace: none, private, shareable, host, container:NAME
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// User namespace: host, or auto[:size=COUNT] for users of its own, who are nobody on the host
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// UTS namespace: host, container:NAME
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// Cgroup that the container's is made in: a path from the root of each hierarchy
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Cgroup namespace: host, private
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,

    #[command(flatten)]
    trust: ContentTrust,
    #[command(flatten)]
    refused: RefusedOptions,
    #[command(flatten)]
    health: HealthOptions,
}

impl ContainerOptions {
    pub(crate) fn pull(&self) -> PullPolicy {
        match self.pull.as_str() {
            "always" => PullPolicy::Always,
            "never" => PullPolicy::Never,
            _ => PullPolicy::Missing,
        }
    }

    pub(crate) fn platform(&self) -> Option<Platform> {
        self.platform.clone()
    }

    /// What the gateway is asked for.
    pub(crate) fn config(
        &self,
        image: &str,
        command: &[String],
    ) -> Result<ContainerConfig, Failure> {
        self.check()?;
        if self.kernel_memory.is_some() {
            eprintln!(
                "WARNING: --kernel-memory has no effect: the kernel has no such limit any more"
            );
        }
        self.check_name()?;
        self.trust.check()?;
        self.refused.check()?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let addresses = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect();
        Ok(ContainerConfig {
            image: image.to_owned(),
            platform: self.platform.clone(),
            command: command.to_vec(),
            entrypoint: self.entrypoint.as_ref().map(|program| Entrypoint {
                // As Docker: one word, and an empty one takes the image's away.
                args: Some(program.clone())
                    .filter(|program| !program.is_empty())
                    .into_iter()
                    .collect(),
            }),
            env: environment::variables(&self.env_file, &self.env)?,
            working_dir: text(&self.workdir),
            user: text(&self.user),
            hostname: text(&self.hostname),
            domainname: text(&self.domainname),
            tty: self.tty,
            stdin_open: self.interactive,
            labels: environment::labels(&self.label_file, &self.label)?,
            mounts: self.mounts(),
            network_mode: text(&self.network),
            ports: self.publish.concat(),
            publish_all: self.publish_all,
            resources: Some(self.resources()),
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            privileged: self.privileged,
            read_only: self.read_only,
            security_opts: self.security_opt.clone(),
            ulimits: self.ulimit.clone(),
            init: self.init,
            auto_remove: self.rm,
            stop_signal: text(&self.stop_signal),
            stop_timeout_seconds: self.stop_timeout,
            restart_policy: self.restart.clone(),
            log: limits::log(self.log_driver.as_deref(), &self.log_opt)?,
            extra_hosts: self.add_host.clone(),
            dns_servers: addresses(&self.dns),
            dns_search: self.dns_search.clone(),
            dns_options: self.dns_option.clone(),
            devices: self.device.clone(),
            sysctls: environment::pairs("--sysctl", &self.sysctl)?,
            shm_size_bytes: self.shm_size.unwrap_or_default(),
            pid_mode: text(&self.pid),
            ipc_mode: text(&self.ipc),
            uts_mode: text(&self.uts),
            cgroupns_mode: text(&self.cgroupns),
            cgroup_parent: text(&self.cgroup_parent),
            mac_address: text(&self.mac_address),
            attached: Some(self.attached()),
            groups: self.group_add.clone(),
            oom_score_adj: self.oom_score_adj.unwrap_or_default(),
            ip_address: self.ip.map(|ip| ip.to_string()).unwrap_or_default(),
            annotations: environment::pairs("--annotation", &self.annotation)?,
            exposed_ports: self.expose.concat(),
            health_check: self.health.check()?,
            on_unhealthy: self.health.on_unhealthy(),
            device_cgroup_rules: self.device_cgroup_rule.clone(),
            userns_mode: text(&self.userns),
            runtime: text(&self.runtime),
            volumes_from: self.volumes_from.clone(),
        })
    }

    /// The streams that are listened to; without `-a` output, and input with `-i`.
    pub(crate) fn attached(&self) -> AttachedStreams {
        let named = |stream: &str| {
            let mut all = self.attach.iter();
            all.any(|name| name.eq_ignore_ascii_case(stream))
        };
        let none = self.attach.is_empty();
        AttachedStreams {
            stdin: if none {
                self.interactive
            } else {
                named("stdin")
            },
            stdout: none || named("stdout"),
            stderr: none || named("stderr"),
        }
    }

    /// With Docker it is the engine that refuses a name, and the code is that of
    /// a refusal.
    fn check_name(&self) -> Result<(), Failure> {
        match &self.name {
            Some(name) if !is_name(name) => Err(Failure::new(format!(
                "--name {name:?}: a name has letters, digits, _ . and -, begins with a letter or a digit, and has at least two characters"
            ))),
            _ => Ok(()),
        }
    }

    fn mounts(&self) -> Vec<Mount> {
        let mut volumes = self.volume.clone();
        if let Some(driver) = &self.volume_driver {
            let volumes = volumes.iter_mut();
            for volume in volumes.filter(|mount| mount.r#type() == MountType::Volume) {
                volume.volume_driver.clone_from(driver);
            }
        }
        [&volumes, &self.mount, &self.tmpfs]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// What no single flag can know.
    fn check(&self) -> Result<(), ParseError> {
        if self.rm
            && self
                .restart
                .as_ref()
                .is_some_and(|policy| policy.name != "no")
        {
            return Err(ParseError::new(
                "--rm and --restart contradict each other; give one of them",
            ));
        }
        if let Some(directory) = &self.workdir
            && !directory.is_empty()
            && !directory.starts_with('/')
        {
            return Err(ParseError::refusal(format!(
                "--workdir {directory:?} is not an absolute path"
            )));
        }
        if let (Some(memory), Some(swap)) = (self.memory, self.memory_swap)
            && swap > 0
            && swap.cast_unsigned() < memory
        {
            return Err(ParseError::refusal(
                "--memory-swap is memory and swap together: it must not be less than --memory",
            ));
        }
        if self.memory_swap.is_some_and(|swap| swap > 0) && self.memory.is_none() {
            return Err(ParseError::refusal("--memory-swap needs --memory"));
        }
        if self.cpus.is_some() && (self.cpu_quota.is_some() || self.cpu_period.is_some()) {
            return Err(ParseError::refusal(
                "--cpus and --cpu-period or --cpu-quota contradict each other; give one of them",
            ));
        }
        Ok(())
    }

    fn resources(&self) -> Resources {
        Resources {
            memory_bytes: self.memory.unwrap_or_default(),
            memory_swap_bytes: self.memory_swap.unwrap_or_default(),
            memory_reservation_bytes: self.memory_reservation.unwrap_or_default(),
            nano_cpus: self.cpus.unwrap_or_default(),
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            pids_limit: self.pids_limit.unwrap_or_default(),
            cpu_period_micros: self.cpu_period.unwrap_or_default(),
            cpu_quota_micros: self.cpu_quota.unwrap_or_default(),
            blkio_weight: self.blkio_weight.unwrap_or_default(),
            oom_kill_disable: self.oom_kill_disable,
            blkio_weight_devices: self.blkio_weight_device.clone(),
            device_read_bps: self.device_read_bps.clone(),
            device_write_bps: self.device_write_bps.clone(),
            device_read_iops: self.device_read_iops.clone(),
            device_write_iops: self.device_write_iops.clone(),
            cpu_realtime_runtime_micros: self.cpu_rt_runtime.unwrap_or_default(),
            cpu_realtime_period_micros: self.cpu_rt_period.unwrap_or_default(),
            memory_swappiness: self
                .memory_swappiness
                .and_then(|percent| u32::try_from(percent).ok()),
        }
    }
}

/// [a-zA-Z0-9][a-zA-Z0-9_.-]+
pub(crate) fn is_name(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}
