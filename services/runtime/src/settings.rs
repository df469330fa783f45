//! The table `[runtime]` of the configuration.

use std::path::PathBuf;

use serde::Deserialize;

/// Every key, with its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The shim's program. Absent: `gantry-shim` beside this service's own.
    pub shim: Option<PathBuf>,
}
