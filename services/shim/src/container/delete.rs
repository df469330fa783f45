//! `delete`: nothing is left.

use super::error::{Error, Result};
use super::handle::Container;

impl Container {
    /// Kills what still runs in the container's cgroup, waits until it is empty, removes it and runs
    /// the `poststop` hooks. Init itself is to be reaped by its parent. Can be repeated.
    pub fn delete(&self) -> Result<()> {
        Err(Error::Unsupported {
            what: "delete".into(),
            why: "not built yet".into(),
        })
    }
}
