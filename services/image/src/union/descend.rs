//! Going down into a union: by a path as a container follows it, and entry by entry.

use std::collections::VecDeque;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::lookup::beneath;
use super::{Node, Union, UnionError};

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

impl Union {
    /// What a path leads to inside a container, links followed, and the path at
    /// which it is. `None`: nothing.
    pub(crate) fn resolve(&self, path: &[u8]) -> Result<Option<(Vec<u8>, Node)>, UnionError> {
        let mut ahead: VecDeque<Vec<u8>> = parts(path).collect();
        let mut passed: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == b".." {
                passed.pop();
                continue;
            }
            passed.push(part);
            let Some(node) = self.find(passed.iter().map(Vec::as_slice))? else {
                return Ok(None);
            };
            if node.kind() != FileType::Symlink {
                continue;
            }
            let seen = passed.join(&b'/');
            links += 1;
            if links > LINKS_MAX {
                return Err(UnionError::read(&seen, "following the symlink")(
                    Errno::LOOP,
                ));
            }
            let Some(target) = self.link_target(&node, &seen)? else {
                return Ok(None);
            };
            passed.pop();
            if target.starts_with(b"/") {
                passed.clear();
            }
            for part in parts(&target).rev() {
                ahead.push_front(part);
            }
        }
        let found = self.find(passed.iter().map(Vec::as_slice))?;
        Ok(found.map(|node| (passed.join(&b'/'), node)))
    }

    /// Gives each entry of a directory, by their names.
    pub(crate) fn each_entry<E: From<UnionError>>(
        &self,
        directory: &Node,
        path: &[u8],
        mut take: impl FnMut(&[u8], Node) -> Result<(), E>,
    ) -> Result<(), E> {
        let open = self.open_directory(directory, path)?;
        for (name, first) in open.names(open.parts.len(), path)? {
            let seen = beneath(path, &name);
            if let Some(node) = self.lookup(&open, &name, first, &seen)? {
                take(&name, node)?;
            }
        }
        Ok(())
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    let parts = path.split(|&b| b == b'/');
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_is_followed_as_inside_a_container() {
        let layers = tempfile::tempdir().unwrap();
        let (top, bottom) = (layers.path().join("top"), layers.path().join("bottom"));
        fs::create_dir_all(top.join("var")).unwrap();
        fs::create_dir_all(bottom.join("run/app")).unwrap();
        symlink("/run", top.join("var/run")).unwrap();
        symlink("../../../../run", bottom.join("up")).unwrap();
        symlink("around", bottom.join("around")).unwrap();
        let union = Union::open([top.as_path(), bottom.as_path()].into_iter()).unwrap();
        for path in [
            "/var/run/app",
            "up/app",
            "/var/../run/./app",
            "/up/../run/app",
        ] {
            let (seen, node) = union.resolve(path.as_bytes()).unwrap().unwrap();
            assert_eq!(seen, b"run/app", "{path}");
            assert!(node.is_directory());
        }
        assert!(union.resolve(b"/var/run/none").unwrap().is_none());
        assert!(union.resolve(b"around").is_err());
        let (seen, _) = union.resolve(b"/..").unwrap().unwrap();
        assert!(seen.is_empty());
    }
}
