//! `delete`.

use std::time::Duration;

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::{output, store};
use crate::container::{Status, Target};

/// `delete [-f] ID`.
pub(super) fn delete(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let mut force = false;
    let mut ids = Vec::new();
    loop {
        while let Some(flag) = words.flag() {
            match flag.name.as_str() {
                "force" | "f" => force = flag.is_on(),
                _ => return Err(flag.unknown("delete")),
            }
        }
        match words.optional() {
            Some(id) => ids.push(id),
            None => break,
        }
    }
    if ids.is_empty() {
        return Err(CliError::usage("the container's id is missing"));
    }
    for id in ids {
        delete_one(globals, &id, force)?;
    }
    Ok(0)
}

fn delete_one(globals: &Globals, id: &str, force: bool) -> Result<(), CliError> {
    let (place, container) = match store::open(globals, id) {
        Ok(found) => found,
        Err(error) => {
            // Without a record nothing is known of it but its directory.
            if force {
                if let Ok(Some(remains)) = store::remains(globals, id) {
                    remains.remove()?;
                }
                return Ok(());
            }
            return Err(error);
        }
    };
    match container.status()? {
        Status::Stopped => {}
        // One that was never started has nothing to lose.
        Status::Created | Status::Creating => {
            let _ = container.kill(libc::SIGKILL, Target::Init);
        }
        _ if force => {
            let _ = container.kill(libc::SIGKILL, Target::All);
        }
        status => {
            return Err(CliError::State {
                id: id.to_owned(),
                verb: "delete",
                why: format!("it is {status}, not stopped; --force kills it first"),
            });
        }
    }
    let _ = container.wait(Duration::from_secs(10));
    if let Some(warning) = container.delete()? {
        output::warn(globals, &warning.to_string());
    }
    place.remove()
}
