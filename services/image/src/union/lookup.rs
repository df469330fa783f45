//! Finding out what a union shows at a name: overlayfs' own steps.
//!
//! The layers are asked from the top down, each below the directory's part in
//! it. The first that has the name decides; a directory goes on to gather parts
//! until a layer says that nothing below is seen. A redirect changes where the
//! layers further down are asked, an absolute one for all of them.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::marks::{self, Opacity, Redirect};
use super::{Node, OpenDirectory, Part, Union, UnionError, error, is_gone, stat_at};
use crate::unpack::tree;

/// What was found so far.
#[derive(Default)]
struct Search {
    stat: Option<Stat>,
    parts: Vec<Part>,
    /// Only attributes were found, of a file.
    wants_content: bool,
    stop: bool,
}

/// Where the next layer is asked.
enum Place {
    /// Under this name in the directory's part.
    Beside(Vec<u8>),
    /// At this path from its root.
    Rooted(Vec<Vec<u8>>),
}

/// What one layer has at a name, with its marks.
struct Found {
    stat: Stat,
    redirect: Option<Redirect>,
}

impl Union {
    /// What is at `name` in a directory. `first`: the first of its parts that may have it.
    pub(super) fn lookup(
        &self,
        directory: &OpenDirectory,
        name: &[u8],
        first: usize,
        path: &[u8],
    ) -> Result<Option<Node>, UnionError> {
        let mut search = Search::default();
        self.search(directory, name, first, &mut search)
            .map_err(UnionError::read(path, "looking at it"))?;
        if search.wants_content {
            return Err(UnionError::NoContent {
                path: error::seen(path),
            });
        }
        let parts = search.parts;
        Ok(search.stat.map(|stat| Node { stat, parts }))
    }

    fn search(
        &self,
        directory: &OpenDirectory,
        name: &[u8],
        first: usize,
        search: &mut Search,
    ) -> Result<(), Errno> {
        let mut place = Place::Beside(name.to_vec());
        let mut next = first;
        while !search.stop {
            match &mut place {
                Place::Beside(name) => {
                    let Some(open) = directory.parts.get(next) else {
                        return Ok(());
                    };
                    next += 1;
                    let found = search.look(&open.fd, name, open.opacity, true)?;
                    let Some(found) = found else { continue };
                    search.add(&found.stat, &open.part, beneath(&open.part.path, name));
                    match found.redirect {
                        None => {}
                        Some(Redirect::Name(other)) => *name = other,
                        Some(Redirect::Path(path)) => {
                            place = Place::Rooted(path);
                            next = open.part.layer + 1;
                        }
                    }
                }
                Place::Rooted(path) => {
                    let Some(layer) = self.layers.get(next) else {
                        return Ok(());
                    };
                    let part = Part {
                        id: layer.id,
                        layer: next,
                        path: Vec::new(),
                    };
                    next += 1;
                    let asked = path.join(&b'/');
                    if let Some(stat) = search.walk(&layer.root, path)? {
                        search.add(&stat, &part, asked);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Search {
    /// Looks at one name in one directory of one layer. `last`: it is the name
    /// that is looked for, and not one on the way to it.
    fn look(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        of_directory: Opacity,
        last: bool,
    ) -> Result<Option<Found>, Errno> {
        let parent = directory.as_fd();
        let Some(stat) = stat_at(directory, name)? else {
            return Ok(None);
        };
        let marks = (|| {
            if marks::is_whiteout(parent, name, &stat, of_directory)? {
                self.stop = true;
                return Ok(None);
            }
            if tree::is_directory(&stat) {
                if last && self.wants_content {
                    self.stop = true;
                    return Ok(None);
                }
                if marks::opacity(parent, name)? == Opacity::Opaque {
                    self.stop = true;
                    return Ok(Some(None));
                }
                return Ok(Some(marks::redirect(parent, name)?));
            }
            let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            // A file hides, and is hidden by, directories; attributes alone need a file below.
            if !last || self.is_directory() || (self.wants_content && !regular) {
                self.stop = true;
                return Ok(None);
            }
            if regular && marks::has_attributes_only(parent, name)? {
                self.wants_content = true;
                return Ok(Some(marks::redirect(parent, name)?));
            }
            self.wants_content = false;
            self.stop = true;
            Ok(Some(None))
        })();
        match marks {
            Ok(redirect) => Ok(redirect.map(|redirect| Found { stat, redirect })),
            Err(error) if is_gone(error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Follows a path from a layer's root. Redirects on it change it for the layers below.
    fn walk(&mut self, root: &OwnedFd, path: &mut Vec<Vec<u8>>) -> Result<Option<Stat>, Errno> {
        let asked = path.clone();
        let mut directory = rustix::io::dup(root)?;
        for (depth, name) in asked.iter().enumerate() {
            let last = depth + 1 == asked.len();
            let opacity = marks::opacity(directory.as_fd(), b".")?;
            let Some(found) = self.look(&directory, name, opacity, last)? else {
                return Ok(None);
            };
            // Counted from the end, since the beginning may have changed already.
            let here = path.len() - (asked.len() - depth);
            match found.redirect {
                None => {}
                Some(Redirect::Name(other)) => path[here] = other,
                Some(Redirect::Path(other)) => {
                    path.splice(..=here, other);
                }
            }
            if last {
                return Ok(Some(found.stat));
            }
            directory = open_beneath(&directory, name)?;
        }
        Ok(None)
    }

    fn is_directory(&self) -> bool {
        self.stat.is_some_and(|stat| tree::is_directory(&stat))
    }

    fn add(&mut self, stat: &Stat, of: &Part, path: Vec<u8>) {
        let first = self.stat.is_none();
        self.stat.get_or_insert(*stat);
        // Of a file in pieces only the first, with the attributes, and the last count.
        if first || tree::is_directory(stat) || !self.wants_content {
            self.parts.push(Part { path, ..of.clone() });
        }
    }
}

fn open_beneath(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

pub(super) fn beneath(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    if !directory.is_empty() {
        path.extend_from_slice(directory);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
