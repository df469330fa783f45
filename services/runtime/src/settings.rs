//! The table `[runtime]` of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// Every key, with its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The shim's program. Absent: `gantry-shim` beside this service's own.
    pub shim: Option<PathBuf>,
    /// Other OCI runtimes, by name.
    pub runtimes: BTreeMap<String, RuntimeProgram>,
}

/// An OCI runtime: a program with runc's interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeProgram {
    /// Absolute, or a name that is looked up in PATH.
    pub path: PathBuf,
    /// Arguments before all that the shim gives it.
    #[serde(default)]
    pub args: Vec<String>,
}
