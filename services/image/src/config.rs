//! The table `[image]` of the configuration.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::registry_client::{HostConfig, Hosts, Mirror};
use crate::unpack::Limits;

/// The table `[image]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Layers of one pull or push that are under way at once.
    pub parallel_layers: usize,
    /// Docker's file of credentials, which need not exist. Empty: none is read.
    pub docker_config: PathBuf,
    /// What one layer may be: `[image.limits]`.
    pub limits: Limits,
    /// Mirrors of Docker Hub, where its table names none.
    pub mirrors: Vec<Mirror>,
    /// Directories in Docker's and containerd's layout; the first that knows a
    /// host counts.
    pub certs_dirs: Vec<PathBuf>,
    /// What is known about registries: `[image.registry."host:port"]`.
    pub registry: HashMap<String, HostConfig>,
    /// The Unix socket of the engine's own registry, which follows from where
    /// the engine has its files. Absent: there is none.
    #[serde(skip)]
    pub own_registry: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            parallel_layers: 4,
            docker_config: PathBuf::from("/root/.docker/config.json"),
            limits: Limits::default(),
            mirrors: Vec::new(),
            certs_dirs: [
                "/etc/gantry/certs.d",
                "/etc/containerd/certs.d",
                "/etc/docker/certs.d",
            ]
            .map(PathBuf::from)
            .into(),
            registry: HashMap::new(),
            own_registry: None,
        }
    }
}

impl Config {
    pub(crate) fn hosts(&self) -> Hosts {
        Hosts {
            tables: self.registry.clone(),
            mirrors: self.mirrors.clone(),
            certs_dirs: self.certs_dirs.clone(),
            docker_config: (!self.docker_config.as_os_str().is_empty())
                .then(|| self.docker_config.clone()),
            own_registry: self.own_registry.clone(),
        }
    }
}
