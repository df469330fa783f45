//! All that `create` decides before it changes anything: the spec, checked and taken apart.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_sys::command_line::CommandLine;
use oci_spec::runtime::{Hooks, LinuxNamespaceType, Spec};

use super::cgroup::Cgroup;
use super::context::During;
use super::devices::{self, PlannedDevice};
use super::error::{Error, Result};
use super::launch::Plan;
use super::mounts::PlannedMount;
use super::namespaces::Namespaces;
use super::net_devices::{self, PlannedNetDevice};
use super::options::{CreateOptions, Gate, Stdio};
use super::record::Record;
use super::seccomp::Filter;
use super::{identity, rootfs, shifted, stand_in, sysctl};

/// The spec and the options, ready to be carried out.
#[derive(Debug)]
pub(super) struct Setup<'a> {
    pub(super) options: &'a CreateOptions<'a>,
    pub(super) spec: &'a Spec,
    pub(super) namespaces: Namespaces,
    pub(super) cgroup: Cgroup,
    pub(super) mounts: Vec<PlannedMount>,
    pub(super) devices: Vec<PlannedDevice>,
    pub(super) net_devices: Vec<PlannedNetDevice>,
    /// The root directory of the spec; unused with an overlay.
    pub(super) root: PathBuf,
    /// The root, detached, where it was made before the container's first process.
    pub(super) root_tree: Option<OwnedFd>,
    pub(super) read_only: bool,
    pub(super) propagation: Option<u64>,
    pub(super) launch: Plan<'a>,
    /// Where this process shows its arguments, where they are to be those of an init.
    pub(super) command_line: Option<CommandLine>,
}

/// crun's annotation, which Podman sets for `--group-add keep-groups`.
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

fn check_id(id: &str) -> Result<()> {
    let fits = (1..=1024).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte))
        && id != "."
        && id != "..";
    if fits {
        Ok(())
    } else {
        Err(Error::invalid(
            "container id",
            format!("{id:?} must be 1 to 1024 characters of A-Z, a-z, 0-9, _, +, . and -"),
        ))
    }
}

impl<'a> Setup<'a> {
    /// Checks everything that can be checked without a container.
    pub(super) fn new(options: &'a CreateOptions<'a>) -> Result<Self> {
        check_id(options.id)?;
        let spec = options.spec;
        if !options.bundle.is_absolute() {
            return Err(Error::invalid(
                "bundle",
                format!("{} is not an absolute path", options.bundle.display()),
            ));
        }
        check_version(spec.version())?;
        let Some(process) = spec.process() else {
            return Err(Error::invalid("process", "missing"));
        };
        let namespaces = Namespaces::from_spec(spec)?;
        let linux = spec.linux().as_ref();
        let terminal = matches!(options.stdio, Stdio::Terminal { .. });
        if terminal != process.terminal().unwrap_or(false) {
            return Err(Error::invalid(
                "process.terminal",
                if terminal {
                    "a terminal was asked for, but the spec says false"
                } else {
                    "the spec says true, but nobody takes the terminal (--console-socket)"
                },
            ));
        }
        if let Some(overlay) = &options.overlay
            && (overlay.lower.is_empty() || overlay.upper.is_some() != overlay.work.is_some())
        {
            return Err(Error::invalid(
                "overlay",
                "needs at least one lower layer, and upper and work together or neither",
            ));
        }
        if options.overlay.is_some() && !namespaces.has_new(LinuxNamespaceType::Mount) {
            return Err(Error::invalid(
                "linux.namespaces",
                "layers need a new mount namespace",
            ));
        }
        let own_uts = namespaces.separate(LinuxNamespaceType::Uts);
        for (field, value) in [
            ("hostname", spec.hostname()),
            ("domainname", spec.domainname()),
        ] {
            if value.as_ref().is_some_and(|value| !value.is_empty()) && !own_uts {
                return Err(Error::invalid(
                    field,
                    "needs a uts namespace: it would change the host's name",
                ));
            }
        }
        let none = std::collections::HashMap::new();
        let sysctls = linux
            .and_then(|linux| linux.sysctl().as_ref())
            .unwrap_or(&none);
        sysctl::check(sysctls, &namespaces, spec.domainname().as_deref())?;
        let propagation =
            rootfs::propagation(linux.and_then(|linux| linux.rootfs_propagation().as_deref()))?;
        let (root, read_only) = match spec.root() {
            Some(root) => (
                options.bundle.join(root.path()),
                root.readonly().unwrap_or(false),
            ),
            None => (PathBuf::new(), false),
        };
        if options.overlay.is_none() && !root.is_dir() {
            return Err(Error::invalid(
                "root.path",
                format!("{} is not a directory", root.display()),
            ));
        }
        let cgroup = Cgroup::new(
            linux.and_then(|linux| linux.cgroups_path().as_deref()),
            options.id,
        )?;
        let filter = linux
            .and_then(|linux| linux.seccomp().as_ref())
            .map(Filter::compile)
            .transpose()?;
        let mut launch = Plan::new(process, filter.map(Arc::new), options.user.as_deref())?;
        launch.create_cwd = options.create_cwd;
        launch.groups = identity::group_names(spec.annotations().iter().flatten());
        launch.keep_groups = spec
            .annotations()
            .as_ref()
            .and_then(|annotations| annotations.get(KEEP_GROUPS))
            .is_some_and(|value| value != "0");
        launch.preserve_fds = options.preserve_fds;
        launch.personality = linux
            .and_then(|linux| linux.personality().as_ref())
            .map(|personality| personality.domain());
        if !options.no_new_keyring {
            launch.new_keyring = std::ffi::CString::new(format!("_ses.{}", options.id)).ok();
        }
        let mounts = spec
            .mounts()
            .iter()
            .flatten()
            .enumerate()
            .map(|(index, mount)| PlannedMount::plan(mount, index, options.bundle, linux))
            .collect::<Result<Vec<_>>>()?;
        let command_line = match stand_in::wanted(spec) {
            true => Some(CommandLine::own().during("find", "the own command line")?),
            false => None,
        };
        let mut setup = Self {
            options,
            spec,
            net_devices: net_devices::plan(spec, &namespaces)?,
            namespaces,
            cgroup,
            mounts,
            devices: devices::plan(spec)?,
            root,
            root_tree: None,
            read_only,
            propagation,
            launch,
            command_line,
        };
        setup.prepare()?;
        Ok(setup)
    }

    /// Makes what the first process of a container with a user namespace will have no right to: detached mounts, which are
    /// nowhere until it attaches them.
    fn prepare(&mut self) -> Result<()> {
        if !self.namespaces.separate(LinuxNamespaceType::User)
            || !self.namespaces.has_new(LinuxNamespaceType::Mount)
        {
            return Ok(());
        }
        let propagation = rootfs::separation(self.propagation);
        let layers =
            self.options.overlay.is_some() || self.mounts.iter().any(PlannedMount::has_layers);
        let ids = if layers {
            shifted::Ids::of(self)?
        } else {
            None
        };
        self.root_tree = match (&self.options.overlay, &ids) {
            (Some(overlay), Some(ids)) => Some(shifted::mount(overlay, ids)?),
            (Some(_), None) => None,
            (None, _) => {
                let tree = rootfs::clone_path(&self.root)?;
                rootfs::propagate_tree(tree.as_fd(), propagation)?;
                Some(tree)
            }
        };
        for mount in &mut self.mounts {
            mount.prepare(propagation, ids.as_ref())?;
        }
        devices::prepare(&mut self.devices, self.spec.linux().as_ref());
        Ok(())
    }

    /// The descriptors that the child must not close.
    pub(super) fn kept(&self) -> Vec<BorrowedFd<'_>> {
        let mut kept: Vec<BorrowedFd<'_>> = Vec::new();
        if let Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } = &self.options.stdio
        {
            kept.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
        }
        kept.extend(self.namespaces.join.iter().map(|join| join.fd.as_fd()));
        kept.extend(
            self.mounts
                .iter()
                .flat_map(|mount| [mount.id_map.as_ref(), mount.ready.as_ref()])
                .flatten()
                .map(OwnedFd::as_fd),
        );
        kept.extend(self.root_tree.as_ref().map(AsFd::as_fd));
        kept.extend(self.devices.iter().filter_map(PlannedDevice::ready));
        kept
    }

    /// The spec's hooks.
    pub(super) fn hooks(&self) -> Option<&Hooks> {
        self.spec.hooks().as_ref()
    }

    /// Whether runtime hooks must run before the root is entered.
    pub(super) fn has_runtime_hooks(&self) -> bool {
        self.hooks().is_some_and(|hooks| {
            prestart(hooks).is_some_and(|hooks| !hooks.is_empty())
                || hooks
                    .create_runtime()
                    .as_ref()
                    .is_some_and(|hooks| !hooks.is_empty())
        })
    }

    /// Whether hooks may look at the root from within the container's mount namespace before it is entered.
    pub(super) fn has_hooks_inside(&self) -> bool {
        self.has_runtime_hooks()
            || self.hooks().is_some_and(|hooks| {
                hooks
                    .create_container()
                    .as_ref()
                    .is_some_and(|hooks| !hooks.is_empty())
            })
    }

    /// What to keep of it.
    pub(super) fn record(&self) -> Record {
        let annotations = self.spec.annotations().iter().flatten();
        Record {
            id: self.options.id.to_owned(),
            pid: 0,
            start_time: 0,
            bundle: self.options.bundle.to_owned(),
            cgroup: self.cgroup.path(),
            owns_cgroup: true,
            gate: match &self.options.gate {
                Gate::Held => None,
                Gate::Socket(path) => Some(path.clone()),
            },
            created_unix: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            annotations: annotations
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            hooks: self.hooks().cloned(),
            host_root: None,
        }
    }
}

impl Setup<'_> {
    /// Whether the child itself enters a namespace, and not somebody before it is born: nobody can enter a PID namespace,
    /// a user namespace must be entered before the others are made, and somebody born in a new user namespace can
    /// not enter the host's.
    pub(super) fn joins_in_child(&self, kind: LinuxNamespaceType) -> bool {
        !matches!(kind, LinuxNamespaceType::Pid | LinuxNamespaceType::User)
            && (kind == LinuxNamespaceType::Mount
                || !self.namespaces.has_new(LinuxNamespaceType::User))
    }

    /// Whether the container's mounts are made here, in a mount namespace that is not its own. From a user namespace nobody
    /// could, and there is no directory to bind the host's own root on.
    pub(super) fn mounts_on_host(&self) -> bool {
        !self.namespaces.separate(LinuxNamespaceType::Mount)
            && !self.namespaces.separate(LinuxNamespaceType::User)
            && self
                .root
                .canonicalize()
                .is_ok_and(|root| root != Path::new("/"))
    }

    /// Whether there are mounts to be made: a namespace that is joined has its own.
    pub(super) fn makes_mounts(&self) -> bool {
        self.namespaces.has_new(LinuxNamespaceType::Mount) || self.mounts_on_host()
    }

    /// Whether the parent must move the child into the v1 cgroups: in a user namespace it may not itself.
    pub(super) fn parent_adds(&self) -> bool {
        self.namespaces.separate(LinuxNamespaceType::User)
    }
}

/// The oldest kind of hooks, deprecated and in use everywhere.
#[allow(deprecated)]
pub(super) fn prestart(hooks: &Hooks) -> Option<&[oci_spec::runtime::Hook]> {
    hooks.prestart().as_deref()
}

fn check_version(version: &str) -> Result<()> {
    let major = version.split('.').next().unwrap_or_default();
    if major == "1" {
        return Ok(());
    }
    Err(Error::invalid(
        "ociVersion",
        format!("{version:?} is not a version 1 of the runtime specification"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_name() {
        for good in ["a", "web_1", "A+b-c.d"] {
            check_id(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\n"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
