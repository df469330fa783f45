//! `update`: new limits for a container that exists.

use oci_spec::runtime::LinuxResources;

use super::error::{Error, Result};
use super::handle::Container;

impl Container {
    /// Sets the limits that are present in `resources` and leaves all others.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let _ = resources;
        Err(Error::Unsupported {
            what: "update".into(),
            why: "not built yet".into(),
        })
    }
}
