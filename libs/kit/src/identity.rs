//! Which engine something of the kernel belongs to.
//!
//! A machine can have several engines, each below a root directory of its own,
//! beside the one that the whole machine shares. What the kernel keeps by name
//! for the whole machine (links, firewall tables, cgroups) has to have a
//! different name for each of them, so these names follow from the root:
//!
//! ```text
//!                     system-wide       below /srv/g
//! scoped("gantry")    gantry            gantry-fdce21
//! mark()              gantry:system     gantry:/srv/g
//! ```
//! The mark is written on an object where the kernel keeps a text with it, so
//! that an engine recognizes what another engine made.
//!
//! # Limits
//! The six digits of two roots can be equal (once in 16 million pairs): the
//! marks still differ, so the second engine refuses to start and its names
//! have to be configured. Marks are compared as text: an engine that sees its
//! root by another path, in a mount namespace of its own, counts as another.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::paths::Paths;

const PREFIX: &str = "gantry:";
const SYSTEM: &str = "system";
/// Begins the mark of a root that is no text or too long for a mark.
const HASHED: &str = "#";
/// The kernel keeps up to 255 bytes as a link's alias (IFALIASZ), and a few
/// less as the comment of a firewall table.
const MARK_MAX: usize = 240;

/// Names an engine on its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    root: Option<PathBuf>,
}

impl Identity {
    /// The engine whose directories these are.
    #[must_use]
    pub fn of(paths: &Paths) -> Self {
        Self {
            root: paths.root.as_deref().map(canonical),
        }
    }

    /// The engine's root directory without links. None: the system-wide engine.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// A number that follows from the root. None: the system-wide engine.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        self.root.as_deref().map(hash)
    }

    /// `name` for this engine alone: as it is for the system-wide engine, with a
    /// hyphen and six hexadecimal digits for any other.
    #[must_use]
    pub fn scoped(&self, name: &str) -> String {
        match self.number() {
            None => name.to_owned(),
            Some(number) => format!("{name}-{:06x}", (number ^ number >> 24) & 0xff_ffff),
        }
    }

    /// The text that marks an object as this engine's: at most 255 bytes.
    #[must_use]
    pub fn mark(&self) -> String {
        let Some(root) = &self.root else {
            return format!("{PREFIX}{SYSTEM}");
        };
        match root.to_str() {
            Some(text) if PREFIX.len() + text.len() <= MARK_MAX => format!("{PREFIX}{text}"),
            _ => format!("{PREFIX}{HASHED}{:016x}", hash(root)),
        }
    }
}

/// Whose mark an object carries, as one engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// No engine's: there is no text, or not one that begins as a mark does.
    None,
    /// That of the engine that looks.
    Own,
    /// Another engine's.
    Other(Other),
}

/// The engine that another engine's mark names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its root directory: None for the system-wide engine, and for an engine
    /// whose root does not fit into a mark.
    root: Option<PathBuf>,
    text: String,
}

impl Identity {
    /// Reads what is written on an object.
    #[must_use]
    pub fn read(&self, text: &str) -> Mark {
        let Some(name) = text.strip_prefix(PREFIX) else {
            return Mark::None;
        };
        if text == self.mark() {
            return Mark::Own;
        }
        Mark::Other(Other {
            root: name.starts_with('/').then(|| PathBuf::from(name)),
            text: name.to_owned(),
        })
    }
}

impl Other {
    /// The directories of that engine, where the mark tells them.
    #[must_use]
    pub fn paths(&self) -> Option<Paths> {
        match &self.root {
            None if self.text == SYSTEM => Some(Paths::system()),
            None => None,
            Some(root) => Paths::under(root).ok(),
        }
    }

    /// Whether that engine can never come back: its root directory is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.root.as_deref().is_some_and(|root| {
            root.symlink_metadata()
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        })
    }
}

impl fmt::Display for Other {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.root {
            Some(root) => write!(formatter, "the engine with --root {}", root.display()),
            None if self.text == SYSTEM => formatter.write_str("the system-wide engine"),
            None => write!(formatter, "another engine ({})", self.text),
        }
    }
}

/// `path` without links, as far as it exists.
fn canonical(path: &Path) -> PathBuf {
    let mut rest: Vec<OsString> = Vec::new();
    let mut existing = path;
    loop {
        if let Ok(found) = existing.canonicalize() {
            return rest.iter().rev().fold(found, |path, name| path.join(name));
        }
        let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
            return path.to_owned();
        };
        rest.push(name.to_owned());
        existing = parent;
    }
}

/// FNV-1a with 64 bits: it has to stay the same for ever, and nothing more.
fn hash(path: &Path) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(OFFSET, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under(root: &Path) -> Identity {
        Identity::of(&Paths::under(root).unwrap())
    }

    #[test]
    fn names_follow_from_the_root_and_only_the_system_wide_engine_has_plain_ones() {
        let system = Identity::of(&Paths::system());
        assert_eq!(system.scoped("gantry"), "gantry");
        assert_eq!(system.mark(), "gantry:system");
        let one = under(Path::new("/srv/g"));
        // Stays the same for ever: bridges and tables on machines have this name.
        assert_eq!(one.scoped("gantry"), "gantry-fdce21");
        assert_eq!(one.mark(), "gantry:/srv/g");
        assert_ne!(
            one.scoped("gantry"),
            under(Path::new("/srv/h")).scoped("gantry")
        );
    }

    #[test]
    fn a_root_is_the_same_engine_by_whatever_path_and_before_it_exists() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        let by_link = under(&base.join("link/engine"));
        assert_eq!(by_link, under(&base.join("real/engine")));
        std::fs::create_dir(base.join("real/engine")).unwrap();
        assert_eq!(by_link, under(&base.join("link/engine")));
    }

    #[test]
    fn a_mark_tells_own_from_other_and_from_anything_else() {
        let own = under(Path::new("/srv/g"));
        assert_eq!(own.read(&own.mark()), Mark::Own);
        assert_eq!(own.read(""), Mark::None);
        assert_eq!(own.read("uplink to the laboratory"), Mark::None);
        let Mark::Other(other) = own.read("gantry:/no/such/root") else {
            panic!("it is another engine's");
        };
        assert_eq!(other.to_string(), "the engine with --root /no/such/root");
        assert!(other.is_gone());
        let Mark::Other(system) = own.read("gantry:system") else {
            panic!("it is the system-wide engine's");
        };
        assert_eq!(system.to_string(), "the system-wide engine");
        assert!(!system.is_gone());
        assert_eq!(system.paths(), Some(Paths::system()));
    }

    #[test]
    fn a_root_too_long_for_a_mark_has_one_all_the_same() {
        let long = |last: char| Identity {
            root: Some(PathBuf::from(format!("/{}{last}", "r".repeat(300)))),
        };
        assert!(long('a').mark().len() < MARK_MAX);
        assert_ne!(long('a').mark(), long('b').mark());
        assert_eq!(long('a').read(&long('a').mark()), Mark::Own);
        assert!(matches!(long('a').read(&long('b').mark()), Mark::Other(_)));
    }
}
