//! What differs between two unions, in the order of a walk: each directory
//! before what is in it, the entries of each by their bytes.
//!
//! Where both are merged of the same parts nothing can differ, and nothing is
//! looked at: comparing a container with its image costs what the container
//! touched, not what the image has.

use std::fs::File;
use std::io::{self, Read as _};

use rustix::fs::FileType;

use super::lookup::beneath;
use super::mount_points;
use super::{Node, OpenDirectory, Union, UnionError};

/// What counts as a difference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Detail {
    /// What a person is told, as with Docker: a directory is not changed by its
    /// time alone, and one that was made anew is compared with the one before.
    Listing,
    /// What a layer has to say so that it makes one of the other: also the times
    /// of directories, and all names of a file that has several.
    Layer,
}

/// One difference.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Difference<'a> {
    Added(&'a Node),
    /// It is another one, or has other attributes, or other entries.
    Modified(&'a Node),
    /// Nothing that the old one had in this directory is in the new one; what is
    /// follows as added. With [`Detail::Layer`] only.
    Emptied,
    Deleted,
}

/// Takes the differences. Paths are relative to the root; the root's is empty
/// and is told of by [`Difference::Emptied`] alone.
pub(crate) trait Visitor {
    type Error: From<UnionError>;

    fn visit(&mut self, path: &[u8], difference: Difference<'_>) -> Result<(), Self::Error>;
}

/// Tells what `new` has other than `old`. Without `old` all of `new` is added.
pub(crate) fn compare<V: Visitor>(
    old: Option<&Union>,
    new: &Union,
    detail: Detail,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let pair = Pair {
        old,
        new,
        detail,
        of_container: false,
    };
    pair.compare(visitor)
}

/// Tells what a container has other than its image. What the engine made for
/// its own mounts is none of the container's doing.
pub(crate) fn compare_container<V: Visitor>(
    image: &Union,
    container: &Union,
    detail: Detail,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let pair = Pair {
        old: Some(image),
        new: container,
        detail,
        of_container: true,
    };
    pair.compare(visitor)
}

impl<'a> Pair<'a> {
    fn compare<V: Visitor>(self, visitor: &mut V) -> Result<(), V::Error> {
        let Some(root) = self.new.root()? else {
            return Ok(());
        };
        let old_root = match self.old {
            Some(old) => old.root()?,
            None => None,
        };
        if old_root.as_ref().is_some_and(|old| old.parts == root.parts) {
            return Ok(());
        }
        let mut walk = Walk {
            pair: self,
            frames: Vec::new(),
        };
        walk.enter(Vec::new(), old_root, root, false, visitor)?;
        walk.run(visitor)
    }
}

/// The two that are compared.
struct Pair<'a> {
    old: Option<&'a Union>,
    new: &'a Union,
    detail: Detail,
    /// The new one is a container over the old one.
    of_container: bool,
}

struct Walk<'a> {
    pair: Pair<'a>,
    /// The directories from the root to where the walk is.
    frames: Vec<Frame>,
}

/// A directory that is being walked.
struct Frame {
    path: Vec<u8>,
    old: Option<Node>,
    new: Node,
    /// Names that are still to be looked at.
    names: std::vec::IntoIter<Name>,
    /// The directory's parts, while it is the deepest one.
    open: Option<Opened>,
    /// It was not told of: it is when something in it differs.
    untold: bool,
}

struct Opened {
    old: Option<OpenDirectory>,
    new: OpenDirectory,
}

struct Name {
    name: Vec<u8>,
    /// The first part that has it, of the old and the new directory.
    old: Option<usize>,
    new: Option<usize>,
}

impl Walk<'_> {
    fn run<V: Visitor>(&mut self, visitor: &mut V) -> Result<(), V::Error> {
        while let Some(frame) = self.frames.last_mut() {
            let Some(name) = frame.names.next() else {
                self.frames.pop();
                continue;
            };
            let opened = match &frame.open {
                Some(opened) => opened,
                None => frame
                    .open
                    .insert(self.pair.open(frame.parts(), &frame.path)?),
            };
            let path = beneath(&frame.path, &name.name);
            let (old, new) = self.pair.lookup(opened, &name, &path)?;
            self.compare_at(path, old, new, visitor)?;
        }
        Ok(())
    }

    fn compare_at<V: Visitor>(
        &mut self,
        path: Vec<u8>,
        old: Option<Node>,
        new: Option<Node>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let Some(new) = new else {
            if old.is_some() {
                self.tell_parents(visitor)?;
                visitor.visit(&path, Difference::Deleted)?;
            }
            return Ok(());
        };
        let made_for_mounts = self.pair.of_container && mount_points::parent(&path);
        let Some(old) = old else {
            if self.pair.is_mount_point(&path, &new)? {
                return Ok(());
            }
            if made_for_mounts && new.is_directory() {
                // It is told of when something else is in it.
                return self.enter(path, None, new, true, visitor);
            }
            self.tell_parents(visitor)?;
            visitor.visit(&path, Difference::Added(&new))?;
            if new.is_directory() {
                self.enter(path, None, new, false, visitor)?;
            }
            return Ok(());
        };
        if old.parts == new.parts {
            return Ok(());
        }
        // Whoever makes a mount point in a directory changes its time.
        let timed = self.pair.detail == Detail::Layer && !made_for_mounts;
        let differs = self.pair.differ(&old, &new, timed, &path)?;
        if differs {
            self.tell_parents(visitor)?;
            visitor.visit(&path, Difference::Modified(&new))?;
        }
        if new.is_directory() {
            let old = old.is_directory().then_some(old);
            self.enter(path, old, new, !differs, visitor)?;
        }
        Ok(())
    }

    /// Tells of the directories on the way to something that differs.
    fn tell_parents<V: Visitor>(&mut self, visitor: &mut V) -> Result<(), V::Error> {
        let first = self.frames.iter().rposition(|frame| !frame.untold);
        for frame in &mut self.frames[first.map_or(0, |told| told + 1)..] {
            frame.untold = false;
            if !frame.path.is_empty() {
                visitor.visit(&frame.path, Difference::Modified(&frame.new))?;
            }
        }
        Ok(())
    }

    fn enter<V: Visitor>(
        &mut self,
        path: Vec<u8>,
        mut old: Option<Node>,
        new: Node,
        mut untold: bool,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let made_anew = old
            .as_ref()
            .is_some_and(|old| !new.parts.iter().any(|part| old.parts.contains(part)));
        if made_anew && self.pair.detail == Detail::Layer {
            // One mark says it, instead of one for each that is gone.
            self.tell_parents(visitor)?;
            if untold {
                visitor.visit(&path, Difference::Modified(&new))?;
                untold = false;
            }
            visitor.visit(&path, Difference::Emptied)?;
            old = None;
        }
        if let Some(parent) = self.frames.last_mut() {
            parent.open = None;
        }
        let opened = self.pair.open((old.as_ref(), &new), &path)?;
        let names = names(&opened, old.as_ref(), &new, &path)?;
        self.frames.push(Frame {
            path,
            old,
            new,
            names: names.into_iter(),
            open: Some(opened),
            untold,
        });
        Ok(())
    }
}

impl Frame {
    fn parts(&self) -> (Option<&Node>, &Node) {
        (self.old.as_ref(), &self.new)
    }
}

/// The names in either, sorted.
fn names(
    opened: &Opened,
    old: Option<&Node>,
    new: &Node,
    path: &[u8],
) -> Result<Vec<Name>, UnionError> {
    // Where the new directory only has parts on top of all of the old one's, a
    // name that is in none of those cannot differ.
    let on_top = old.and_then(|old| {
        let on_top = new.parts.len().checked_sub(old.parts.len())?;
        (new.parts[on_top..] == old.parts).then_some(on_top)
    });
    let new_parts = on_top.unwrap_or(new.parts.len());
    let mut news = opened.new.names(new_parts, path)?.into_iter().peekable();
    let olds = match (&opened.old, on_top) {
        (Some(old), None) => old.names(old.parts.len(), path)?,
        _ => Vec::new(),
    };
    let mut olds = olds.into_iter().peekable();
    let mut names = Vec::new();
    // A name that the new one may have from the old one's parts is looked for from the first of them.
    let old_first = opened.old.as_ref().map(|_| 0);
    loop {
        let new_is_next = match (news.peek(), olds.peek()) {
            (None, None) => return Ok(names),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((new, _)), Some((old, _))) => new <= old,
        };
        let next = if new_is_next {
            news.next()
        } else {
            olds.next()
        };
        let Some((name, position)) = next else {
            return Ok(names);
        };
        if !new_is_next {
            names.push(Name {
                name,
                old: Some(position),
                new: None,
            });
            continue;
        }
        let in_old = olds.next_if(|(old, _)| *old == name);
        let old = match on_top {
            Some(_) => old_first,
            None => in_old.map(|(_, position)| position),
        };
        names.push(Name {
            name,
            old,
            new: Some(position),
        });
    }
}

impl Pair<'_> {
    fn open(&self, (old, new): (Option<&Node>, &Node), path: &[u8]) -> Result<Opened, UnionError> {
        let old = match (self.old, old) {
            (Some(union), Some(node)) => Some(union.open_directory(node, path)?),
            _ => None,
        };
        let new = self.new.open_directory(new, path)?;
        Ok(Opened { old, new })
    }

    fn lookup(
        &self,
        opened: &Opened,
        name: &Name,
        path: &[u8],
    ) -> Result<(Option<Node>, Option<Node>), UnionError> {
        let old = match (self.old, &opened.old, name.old) {
            (Some(union), Some(directory), Some(first)) => {
                union.lookup(directory, &name.name, first, path)?
            }
            _ => None,
        };
        let new = match name.new {
            Some(first) => self.new.lookup(&opened.new, &name.name, first, path)?,
            None => None,
        };
        Ok((old, new))
    }

    /// Whether it is only there for something to be mounted on it.
    fn is_mount_point(&self, path: &[u8], node: &Node) -> Result<bool, UnionError> {
        if !self.of_container || !mount_points::may_be(path, node.kind()) {
            return Ok(false);
        }
        if node.is_directory() {
            let directory = self.new.open_directory(node, path)?;
            return Ok(directory.names(node.parts.len(), path)?.is_empty());
        }
        Ok(node.stat.st_size == 0)
    }

    /// Whether two things at one place differ, what is in them aside. `timed`:
    /// so does a directory with another time.
    fn differ(&self, old: &Node, new: &Node, timed: bool, path: &[u8]) -> Result<bool, UnionError> {
        let Some(old_union) = self.old else {
            return Ok(true);
        };
        let (a, b) = (&old.stat, &new.stat);
        if (a.st_mode, a.st_uid, a.st_gid) != (b.st_mode, b.st_uid, b.st_gid) {
            return Ok(true);
        }
        let kind = new.kind();
        let timed = timed || kind != FileType::Directory;
        if timed && (a.st_mtime, a.st_mtime_nsec) != (b.st_mtime, b.st_mtime_nsec) {
            return Ok(true);
        }
        match kind {
            FileType::Directory => {}
            FileType::CharacterDevice | FileType::BlockDevice if a.st_rdev != b.st_rdev => {
                return Ok(true);
            }
            _ if a.st_size != b.st_size => return Ok(true),
            // Its other names are in the layer: it has to be there, too.
            _ if self.detail == Detail::Layer && b.st_nlink > 1 => return Ok(true),
            _ => {}
        }
        if old_union.xattrs(old, path)? != self.new.xattrs(new, path)? {
            return Ok(true);
        }
        match kind {
            FileType::Symlink => {
                let target = old_union.link_target(old, path)?;
                Ok(target != self.new.link_target(new, path)?)
            }
            // A time can be set back: what else is equal is no proof.
            FileType::RegularFile if b.st_size > 0 => {
                let files = (old_union.content(old, path)?, self.new.content(new, path)?);
                match files {
                    (Some(old), Some(new)) => {
                        Ok(!same_content(old, new).map_err(|source| UnionError::Read {
                            path: super::error::seen(path),
                            step: "comparing its content",
                            source,
                        })?)
                    }
                    _ => Ok(true),
                }
            }
            _ => Ok(false),
        }
    }
}

fn same_content(old: File, new: File) -> io::Result<bool> {
    const PIECE: usize = 128 << 10;
    let (mut old_piece, mut new_piece) = (Vec::new(), Vec::new());
    loop {
        old_piece.clear();
        new_piece.clear();
        (&old).take(PIECE as u64).read_to_end(&mut old_piece)?;
        (&new).take(PIECE as u64).read_to_end(&mut new_piece)?;
        if old_piece != new_piece {
            return Ok(false);
        }
        if old_piece.is_empty() {
            return Ok(true);
        }
    }
}
