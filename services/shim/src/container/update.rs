//! `update`: new limits for a container that exists.

use oci_spec::runtime::LinuxResources;

use super::error::Result;
use super::handle::Container;
use super::record::Status;

impl Container {
    /// Sets the limits that are present in `resources` and leaves all others. Device rules are replaced if there
    /// are any.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.require(
            "update",
            &[Status::Created, Status::Running, Status::Paused],
        )?;
        let cgroup = self.cgroup()?;
        cgroup.limit(Some(resources))?;
        if resources
            .devices()
            .as_ref()
            .is_some_and(|rules| !rules.is_empty())
        {
            cgroup.allow_devices(Some(resources))?;
        }
        Ok(())
    }
}
