//! `pause` and `resume`.

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::store;
use crate::container::Container;

fn open(globals: &Globals, mut words: Arguments, verb: &str) -> Result<Container, CliError> {
    if let Some(flag) = words.flag() {
        return Err(flag.unknown(verb));
    }
    let id = words.required("the container's id")?;
    words.end()?;
    Ok(store::open(globals, &id)?.1)
}

/// `pause ID`.
pub(super) fn pause(globals: &Globals, words: Arguments) -> Result<u8, CliError> {
    open(globals, words, "pause")?.pause()?;
    Ok(0)
}

/// `resume ID`.
pub(super) fn resume(globals: &Globals, words: Arguments) -> Result<u8, CliError> {
    open(globals, words, "resume")?.resume()?;
    Ok(0)
}
