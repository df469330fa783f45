//! Where an engine keeps its files.
//!
//! ```text
//!            system-wide                under --root DIR
//! state      /var/lib/gantry            DIR/lib
//! run        /run/gantry                DIR/run
//! log        /var/log/gantry            DIR/log
//! config     /etc/gantry/gantry.toml    DIR/gantry.toml
//! ```

use std::path::{Path, PathBuf};

/// Longest root in bytes: what the engine adds, and what containers have in their
/// volumes, must fit into the 4,095 bytes that the kernel takes for a path.
/// Sockets set no limit ([`crate::socket`]).
const ROOT_MAX: usize = 1024;

/// The directories and the configuration file of one engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Persistent state; each service has a directory of its own below it.
    pub state: PathBuf,
    /// Sockets and all else that ends with the machine's uptime.
    pub run: PathBuf,
    /// Containers' logs.
    pub log: PathBuf,
    /// The configuration file. It need not exist.
    pub config: PathBuf,
    /// The directory all of them are in, where one was given.
    pub root: Option<PathBuf>,
}

/// A root directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    #[error("root directory {0:?} is not absolute; give the whole path")]
    NotAbsolute(PathBuf),
    #[error(
        "root directory {root:?} has {length} bytes, and may have {ROOT_MAX}; choose a shorter one"
    )]
    TooLong { root: PathBuf, length: usize },
}

impl Paths {
    /// The directories of the engine that the whole machine shares.
    #[must_use]
    pub fn system() -> Self {
        Self {
            state: PathBuf::from("/var/lib/gantry"),
            run: PathBuf::from("/run/gantry"),
            log: PathBuf::from("/var/log/gantry"),
            config: PathBuf::from("/etc/gantry/gantry.toml"),
            root: None,
        }
    }

    /// The directories of an engine that lives below `root`.
    ///
    /// # Errors
    /// `root` is relative, or longer than 1,024 bytes.
    pub fn under(root: &Path) -> Result<Self, PathsError> {
        if !root.is_absolute() {
            return Err(PathsError::NotAbsolute(root.to_owned()));
        }
        let length = root.as_os_str().len();
        if length > ROOT_MAX {
            return Err(PathsError::TooLong {
                root: root.to_owned(),
                length,
            });
        }
        Ok(Self {
            state: root.join("lib"),
            run: root.join("run"),
            log: root.join("log"),
            config: root.join("gantry.toml"),
            root: Some(root.to_owned()),
        })
    }

    /// [`Paths::under`] where a root is given, else [`Paths::system`].
    ///
    /// # Errors
    /// As [`Paths::under`].
    pub fn resolve(root: Option<&Path>) -> Result<Self, PathsError> {
        root.map_or_else(|| Ok(Self::system()), Self::under)
    }

    /// The Unix socket a service listens on.
    #[must_use]
    pub fn socket(&self, service: &str) -> PathBuf {
        self.run.join(format!("{service}.sock"))
    }

    /// The directory a service keeps its state in.
    #[must_use]
    pub fn state_of(&self, service: &str) -> PathBuf {
        self.state.join(service)
    }

    /// The bundle directory of one container.
    #[must_use]
    pub fn container(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }

    /// The directory of one container's log segments.
    #[must_use]
    pub fn container_log(&self, id: &str) -> PathBuf {
        self.log.join("containers").join(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_moves_together_under_a_root() {
        let paths = Paths::under(Path::new("/srv/g")).unwrap();
        assert_eq!(paths.socket("image"), Path::new("/srv/g/run/image.sock"));
        assert_eq!(paths.state_of("image"), Path::new("/srv/g/lib/image"));
        assert_eq!(
            paths.container_log("c1"),
            Path::new("/srv/g/log/containers/c1")
        );
        assert_eq!(paths.config, Path::new("/srv/g/gantry.toml"));
    }

    #[test]
    fn a_root_that_cannot_work_is_refused() {
        let root = |length: usize| PathBuf::from(format!("/{}", "r".repeat(length - 1)));
        Paths::under(&root(1024)).unwrap();
        assert!(matches!(
            Paths::under(&root(1025)),
            Err(PathsError::TooLong { length: 1025, .. })
        ));
        assert!(matches!(
            Paths::under(Path::new("relative")),
            Err(PathsError::NotAbsolute(_))
        ));
    }
}
