//! What overlayfs writes into its directories, read back.
//!
//! | mark | means |
//! | --- | --- |
//! | character device 0/0 | the name is gone |
//! | empty file with `overlay.whiteout`, in a directory with `overlay.opaque=x` | the same |
//! | `overlay.opaque=y` on a directory | nothing below it is seen |
//! | `overlay.redirect=NAME` | below, it has this name in the same directory |
//! | `overlay.redirect=/PATH` | below, it is there |
//! | `overlay.metacopy` on a file | only attributes are here, the content is below |

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::unpack::tree::{self, OPAQUE};

const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const WHITEOUT: &[u8] = b"trusted.overlay.whiteout";

/// What a directory lets through of the layers below.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opacity {
    /// Everything that it does not have itself.
    Clear,
    /// The same, and it may have whiteouts that are files.
    FileWhiteouts,
    /// Nothing.
    Opaque,
}

/// Where the lower part of something is, when not at the same place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Redirect {
    /// Another name in the same directory.
    Name(Vec<u8>),
    /// A path from the layers' roots, by its components.
    Path(Vec<Vec<u8>>),
}

/// Reads the mark of a directory.
pub(crate) fn opacity(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Opacity, Errno> {
    let mark = tree::get_xattr(parent, name, OPAQUE.as_bytes())?;
    Ok(match mark.as_deref() {
        Some(b"y") => Opacity::Opaque,
        Some(b"x") => Opacity::FileWhiteouts,
        _ => Opacity::Clear,
    })
}

/// Whether what is at a name says that the name is gone.
pub(super) fn is_whiteout(
    parent: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    of_directory: Opacity,
) -> Result<bool, Errno> {
    if tree::is_whiteout(stat) {
        return Ok(true);
    }
    let candidate = of_directory == Opacity::FileWhiteouts
        && stat.st_size == 0
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(candidate && tree::get_xattr(parent, name, WHITEOUT)?.is_some())
}

pub(super) fn has_attributes_only(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    Ok(tree::get_xattr(parent, name, METACOPY)?.is_some())
}

/// Reads where the lower part is. A mark that makes no sense is an error, as it is to the kernel.
pub(super) fn redirect(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Redirect>, Errno> {
    let Some(text) = tree::get_xattr(parent, name, REDIRECT)? else {
        return Ok(None);
    };
    let sound = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    let redirect = match text.strip_prefix(b"/") {
        Some(path) => {
            let parts: Vec<Vec<u8>> = path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect();
            if !parts.iter().all(|part| sound(part)) {
                return Err(Errno::INVAL);
            }
            Redirect::Path(parts)
        }
        None if sound(&text) && !text.contains(&b'/') => Redirect::Name(text),
        None => return Err(Errno::INVAL),
    };
    Ok(Some(redirect))
}

/// Whether an extended attribute belongs to the file, and not to this machine
/// or to overlayfs.
pub(super) fn is_of_the_file(key: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
    // Labels and signatures of this machine's policy and keys.
    const NAMES: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
    !PREFIXES.iter().any(|prefix| key.starts_with(prefix)) && !NAMES.contains(&key)
}
