//! A container's files while it lives.
//!
//! ```text
//! <run>/containers/<id>/
//!   record.json      this service's own: the shim's process, when created and started
//!   config.json      the OCI runtime specification, as the shim got it
//!   etc/0, etc/1 …   files made for the container, bound over the image's
//!   shim.sock        the shim's socket
//!   shim.stderr      what the shim said last
//!   container.json   the shim's: what cleaning up after it takes
//!   exit.json        the shim's: how the first process ended
//! ```
//! The directory is for root alone. Files are replaced whole, and not fsynced:
//! the directory ends with the machine's uptime, as its containers do.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use gantry_kit::directories;
use gantry_kit::durable;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::life::{ExitStatus, Status};

const RECORD: &str = "record.json";

/// A file to make for a container and to bind over the image's.
#[derive(Clone, Debug)]
pub struct EtcFile {
    /// Absolute, inside the container.
    pub path: String,
    pub content: Vec<u8>,
    pub mode: u32,
}

/// What adoption needs to know of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub shim_pid: i32,
    /// The shim's start in clock ticks since boot: tells it from a later
    /// process with its id.
    pub shim_start: u64,
    pub created_unix_nanos: u64,
    #[serde(default)]
    pub started_unix_nanos: Option<u64>,
    /// Status at the last writing; a shim that answers knows better.
    pub status: Status,
    #[serde(default)]
    pub pid: i32,
}

/// One container's directory.
#[derive(Clone, Debug)]
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// The directory at `path`, which need not exist.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes the directory anew. What a creation that was cut off left there
    /// goes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(path: PathBuf) -> Result<Self> {
        let bundle = Self { path };
        let make = || {
            DirBuilder::new()
                .recursive(false)
                .mode(0o700)
                .create(&bundle.path)
        };
        let made = match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bundle.remove()?;
                make()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = bundle.path.parent() {
                    directories::make(parent)
                        .map_err(|error| Error::file("cannot create", parent, error))?;
                }
                make()
            }
            made => made,
        };
        made.map_err(|source| Error::file("cannot create", &bundle.path, source))?;
        Ok(bundle)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("shim.sock")
    }

    /// Writes the files that are bound over the image's, and the specification
    /// with a mount for each of them; gives the latter.
    ///
    /// # Errors
    /// The specification is none, or a file cannot be written.
    pub fn fill(&self, spec: &[u8], etc_files: &[EtcFile]) -> Result<Vec<u8>> {
        let spec = if etc_files.is_empty() {
            spec.to_vec()
        } else {
            let directory = self.path.join("etc");
            DirBuilder::new()
                .mode(0o700)
                .create(&directory)
                .map_err(|source| Error::file("cannot create", &directory, source))?;
            let mut mounts = Vec::new();
            let spec = parsed(spec)?;
            let owner = root_of(&spec);
            for (number, file) in etc_files.iter().enumerate() {
                let path = directory.join(number.to_string());
                let mode = if file.mode == 0 { 0o644 } else { file.mode };
                write(&path, mode, &file.content)?;
                if let Some((uid, gid)) = owner {
                    std::os::unix::fs::chown(&path, Some(uid), Some(gid))
                        .map_err(|source| Error::file("cannot own", &path, source))?;
                }
                mounts.push(json!({
                    "destination": file.path,
                    "type": "bind",
                    "source": path,
                    "options": ["rbind", "rprivate"],
                }));
            }
            with_mounts(spec, mounts)?
        };
        write(&self.path.join("config.json"), 0o600, &spec)?;
        Ok(spec)
    }

    /// # Errors
    /// The record cannot be written.
    pub fn keep(&self, record: &Record) -> Result<()> {
        self.replace(RECORD, record)
    }

    /// Replaces a file of the bundle, which ends with the machine's uptime.
    fn replace(&self, name: &str, content: &impl Serialize) -> Result<()> {
        let path = self.path.join(name);
        let text = serde_json::to_vec(content)
            .map_err(|error| Error::file("cannot write", &path, error))?;
        durable::replace_volatile(&path, 0o600, &text)
            .map_err(|error| Error::file("cannot write", error.path, error.source))
    }

    /// The record; `None` where there is none that can be read.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        read_json(&self.path.join(RECORD))
    }

    /// How the first process ended, as the shim wrote it.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        read_json(&self.path.join("exit.json"))
    }

    /// Writes how the first process ended, in place of a shim that died.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_exit(&self, exit: &ExitStatus) -> Result<()> {
        self.replace("exit.json", exit)
    }

    /// The last line the shim wrote on its standard error; empty: none.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = fs::read(self.path.join("shim.stderr")).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned()
    }

    /// Removes the directory with all in it.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("cannot remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            // Containers read some of them: the umask must not have a say.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(content)
        })
        .map_err(|source| Error::file("cannot write", path, source))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn invalid(problem: impl ToString) -> Error {
    Error::Invalid {
        field: "spec",
        problem: problem.to_string(),
    }
}

fn parsed(spec: &[u8]) -> Result<Value> {
    serde_json::from_slice(spec).map_err(invalid)
}

/// User and group of the container's root as the host has them, where they are
/// not the host's.
fn root_of(spec: &Value) -> Option<(u32, u32)> {
    let first = |mappings: &str| {
        let all = spec["linux"][mappings].as_array()?;
        let root = all.iter().find(|mapping| mapping["containerID"] == 0)?;
        root["hostID"].as_u64()?.try_into().ok()
    };
    Some((first("uidMappings")?, first("gidMappings")?))
}

/// The specification with more mounts after its own.
fn with_mounts(mut spec: Value, more: Vec<Value>) -> Result<Vec<u8>> {
    let mounts = spec
        .as_object_mut()
        .ok_or_else(|| invalid("is not an object"))?
        .entry("mounts")
        .or_insert_with(|| Value::Array(Vec::new()));
    if mounts.is_null() {
        *mounts = Value::Array(Vec::new());
    }
    mounts
        .as_array_mut()
        .ok_or_else(|| invalid("mounts is not an array"))?
        .extend(more);
    serde_json::to_vec(&spec).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_made_for_a_container_become_its_last_mounts() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = Bundle::make(directory.path().join("a/b")).unwrap();
        let files = [EtcFile {
            path: "/etc/hosts".to_owned(),
            content: b"127.0.0.1 localhost\n".to_vec(),
            mode: 0,
        }];
        let spec = bundle
            .fill(br#"{"mounts":[{"destination":"/proc"}]}"#, &files)
            .unwrap();
        let spec: Value = serde_json::from_slice(&spec).unwrap();
        assert_eq!(spec["mounts"][0]["destination"], "/proc");
        assert_eq!(spec["mounts"][1]["destination"], "/etc/hosts");
        let source = spec["mounts"][1]["source"].as_str().unwrap();
        assert_eq!(fs::read(source).unwrap(), b"127.0.0.1 localhost\n");
    }

    #[test]
    fn what_a_cut_off_creation_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("stale"), b"").unwrap();
        let bundle = Bundle::make(path).unwrap();
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
    }
}
