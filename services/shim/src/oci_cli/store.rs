//! The containers on disk.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::CliError;
use super::arguments::Globals;
use crate::container::{self, Container, Record};

/// One container's directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
}

/// An id that is no path.
fn check_id(id: &str) -> Result<(), CliError> {
    let fits = !id.is_empty()
        && id != "."
        && id != ".."
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte));
    if fits {
        Ok(())
    } else {
        Err(CliError::usage(format!(
            "container ID {id:?} is empty or has an invalid character: \
             it must be made of A-Z, a-z, 0-9, _, +, . and -, and not be \".\" or \"..\""
        )))
    }
}

impl Place {
    fn of(globals: &Globals, id: &str) -> Result<Self, CliError> {
        check_id(id)?;
        Ok(Self {
            directory: globals.root.join(id),
        })
    }

    /// Takes the id.
    pub(super) fn make(globals: &Globals, id: &str) -> Result<Self, CliError> {
        let place = Self::of(globals, id)?;
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        match builder.create(&place.directory) {
            Ok(()) => return Ok(place),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CliError::Exists { id: id.to_owned() });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CliError::file("make", &place.directory, error)),
        }
        builder
            .recursive(true)
            .create(&globals.root)
            .map_err(|error| CliError::file("make", &globals.root, error))?;
        builder
            .recursive(false)
            .create(&place.directory)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => CliError::Exists { id: id.to_owned() },
                _ => CliError::file("make", &place.directory, error),
            })?;
        Ok(place)
    }

    /// Gives the id back.
    pub(super) fn remove(&self) -> Result<(), CliError> {
        for file in ["state.json", "state.json.new", "config.json", "start.sock"] {
            match std::fs::remove_file(self.directory.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CliError::file("remove", &self.directory.join(file), error));
                }
                _ => {}
            }
        }
        match std::fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CliError::file("remove", &self.directory, error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn gate(&self) -> PathBuf {
        self.directory.join("start.sock")
    }

    /// Writes the record, in one step for whoever reads.
    pub(super) fn save(&self, record: &Record, spec: &[u8]) -> Result<(), CliError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.directory.join(name);
            std::fs::write(&path, bytes).map_err(|error| CliError::file("write", &path, error))
        };
        write("config.json", spec)?;
        let text = serde_json::to_vec(record).map_err(|source| CliError::Json {
            what: "record",
            path: self.directory.clone(),
            source,
        })?;
        write("state.json.new", &text)?;
        let path = self.directory.join("state.json");
        std::fs::rename(self.directory.join("state.json.new"), &path)
            .map_err(|error| CliError::file("write", &path, error))
    }

    /// The spec as it was at `create`.
    pub(super) fn spec(&self) -> Result<Spec, CliError> {
        read_spec(&self.directory.join("config.json")).map(|config| config.spec)
    }
}

/// Finds a container.
pub(super) fn open(globals: &Globals, id: &str) -> Result<(Place, Container), CliError> {
    let place = Place::of(globals, id)?;
    let path = place.directory.join("state.json");
    let text = std::fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CliError::NoContainer { id: id.to_owned() },
        _ => CliError::file("read", &path, error),
    })?;
    let record: Record = serde_json::from_slice(&text).map_err(|source| CliError::Json {
        what: "record of a container",
        path,
        source,
    })?;
    let container = Container::reopen(record)?;
    Ok((place, container))
}

/// The directory of one that may have no record: half made, or half removed.
pub(super) fn remains(globals: &Globals, id: &str) -> Result<Option<Place>, CliError> {
    let place = Place::of(globals, id)?;
    Ok(place.directory.is_dir().then_some(place))
}

/// All ids, in order.
pub(super) fn ids(globals: &Globals) -> Result<Vec<String>, CliError> {
    let entries = match std::fs::read_dir(&globals.root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CliError::file("read", &globals.root, error)),
    };
    let mut ids: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|id| check_id(id).is_ok())
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// A config.json.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) spec: Spec,
    /// As it is.
    pub(super) bytes: Vec<u8>,
    /// What of it is passed over.
    pub(super) warnings: Vec<String>,
}

/// Reads a config.json.
pub(super) fn read_spec(path: &Path) -> Result<Config, CliError> {
    let bytes = std::fs::read(path).map_err(|error| CliError::file("read", path, error))?;
    let (spec, warnings) = container::read_spec(&bytes).map_err(|source| CliError::Json {
        what: "runtime specification",
        path: path.to_owned(),
        source,
    })?;
    Ok(Config {
        spec,
        bytes,
        warnings,
    })
}
