//! Cleans up after a shim that died: ends what is left of its container and
//! removes its cgroup.

use std::fs;
use std::io;
use std::path::Path;

use crate::container::{Container, Record, Target};
use crate::error::{Error, Result};
use crate::shim::RECORD_FILE;

/// Sweeps the container of `bundle`. One that was never made needs nothing.
///
/// # Errors
/// The record cannot be read, or something of the container can not be removed.
pub fn sweep(bundle: &Path) -> Result<()> {
    let failed = |source| Error::Io {
        step: "cannot read the container's record",
        source,
    };
    let text = match fs::read(bundle.join(RECORD_FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(source)),
    };
    let record: Record = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    let container = Container::reopen(record)?;
    container.kill(libc::SIGKILL, Target::All)?;
    container.delete()?;
    Ok(())
}
