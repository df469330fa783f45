//! What an engine makes in a container's root for its own mounts.
//!
//! Every container has file systems of the kernel at three places (OCI runtime
//! specification, "Default Filesystems"), and three files that the engine writes
//! (Docker's). Where the image has nothing there, an empty directory or file is
//! made to mount on. Docker keeps these in a layer of their own; here they are in
//! the writable layer, and are told from the container's doing by what they are:
//! nobody can write into them while something is mounted on them.

use rustix::fs::FileType;

const DIRECTORIES: [&[u8]; 3] = [b"dev", b"proc", b"sys"];
const FILES: [&[u8]; 3] = [b"etc/hostname", b"etc/hosts", b"etc/resolv.conf"];

/// Whether something of this kind may have been made there, if it is empty.
pub(super) fn may_be(path: &[u8], kind: FileType) -> bool {
    match kind {
        FileType::Directory => DIRECTORIES.contains(&path),
        FileType::RegularFile => FILES.contains(&path),
        _ => false,
    }
}

/// Whether it is the directory that such files are made in.
pub(super) fn parent(path: &[u8]) -> bool {
    path == b"etc"
}
