//! What a caller says beside the spec.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// The three standard streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// The caller's own.
    Inherit,
    /// These. They are given away: the caller's copies are closed when the call returns.
    Pipes {
        /// Standard input, the end to read from.
        stdin: OwnedFd,
        /// Standard output, the end to write to.
        stdout: OwnedFd,
        /// Standard error, the end to write to; may be a duplicate of `stdout`.
        stderr: OwnedFd,
    },
    /// A new terminal out of the container's own devpts, with this size before the program's
    /// first byte. The master comes back in [`Created`](super::Created) or [`Executed`](super::Executed).
    Terminal {
        /// `None`: the spec's `process.consoleSize`, or 0 × 0 (unknown).
        size: Option<TerminalSize>,
    },
}

/// A root file system of layers, mounted by init inside its own mount namespace.
/// It replaces the spec's `root.path` (which then is not read; `root.readonly` holds).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Read-only layers, the top-most first. At least one.
    pub lower: Vec<PathBuf>,
    /// The writable layer. `None`: the whole root is read-only (and `work` is not used).
    pub upper: Option<PathBuf>,
    /// An empty directory on the file system of `upper`.
    pub work: Option<PathBuf>,
    /// Further options, as `metacopy=on`, `volatile`, `index=off`.
    pub options: Vec<String>,
}

/// How `start` reaches init.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Gate {
    /// Through a socket pair held by the [`Container`](super::Container): only this process
    /// can start it, and init ends if this process does before `start`.
    #[default]
    Held,
    /// Through a listening Unix socket at this path, so that another process can start it
    /// (`gantry-oci start`). Its directory must exist and be closed to others.
    Socket(PathBuf),
}

/// Everything `create` needs.
#[derive(Debug)]
pub struct CreateOptions<'a> {
    /// The container's id: 1 to 1024 characters of `[A-Za-z0-9_+.-]`, not "." or "..".
    pub id: &'a str,
    /// The bundle's directory; relative paths in the spec start here. Absolute.
    pub bundle: &'a Path,
    /// The runtime spec, already parsed.
    pub spec: &'a Spec,
    /// Layers to mount as root, instead of the spec's `root.path`.
    pub overlay: Option<Overlay>,
    /// A `name|uid[:group|gid]` to be looked up in the container's own /etc/passwd and
    /// /etc/group. It overrides the spec's numeric user; supplementary groups from
    /// /etc/group are added to the spec's `additionalGids`.
    pub user: Option<String>,
    /// The standard streams. [`Stdio::Terminal`] needs `process.terminal` in the spec and the reverse.
    pub stdio: Stdio,
    /// Make `process.cwd` (owned by the user) where it is missing, as Docker and runc do.
    pub create_cwd: bool,
    /// How `start` will reach init.
    pub gate: Gate,
    /// Hand the caller's first n descriptors from 3 on to the program (`--preserve-fds`): those that are not
    /// close-on-exec, which is how they come to a program by inheritance.
    pub preserve_fds: u32,
    /// Do not pivot_root but move the root and chroot (`--no-pivot`, for a ramdisk root).
    pub no_pivot: bool,
    /// Do not join a new session keyring (`--no-new-keyring`).
    pub no_new_keyring: bool,
}

impl<'a> CreateOptions<'a> {
    /// The options with everything else at its default: the caller's streams, the spec's root and user.
    #[must_use]
    pub fn new(id: &'a str, bundle: &'a Path, spec: &'a Spec) -> Self {
        Self {
            id,
            bundle,
            spec,
            overlay: None,
            user: None,
            stdio: Stdio::Inherit,
            create_cwd: false,
            gate: Gate::Held,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
        }
    }
}
