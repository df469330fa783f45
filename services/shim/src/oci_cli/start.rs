//! `start`.

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::{output, store};
use crate::container::Error;

/// `start ID`.
pub(super) fn start(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    if let Some(flag) = words.flag() {
        return Err(flag.unknown("start"));
    }
    let id = words.required("the container's id")?;
    words.end()?;
    let (place, mut container) = store::open(globals, &id)?;
    let started = container.start();
    if let Err(Error::Hook { kind, .. }) = &started
        && kind == "poststart"
    {
        // The specification: then the container is stopped and deleted.
        if let Some(warning) = container.delete()? {
            output::warn(globals, &warning.to_string());
        }
        place.remove()?;
    }
    started?;
    Ok(0)
}
