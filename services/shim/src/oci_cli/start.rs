//! `start`.

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::store;

/// `start ID`.
pub(super) fn start(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    if let Some(flag) = words.flag() {
        return Err(flag.unknown("start"));
    }
    let id = words.required("the container's id")?;
    words.end()?;
    let (_, mut container) = store::open(globals, &id)?;
    container.start()?;
    Ok(0)
}
