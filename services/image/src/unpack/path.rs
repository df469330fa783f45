//! Names as archives spell them, made into paths that can not leave a layer.

use std::collections::BTreeSet;

use super::error::{UnpackError, shown};
use super::limits::Limits;

/// The longest name of one directory entry on any Linux file system.
const NAME_MAX: usize = 255;

/// A path beneath a layer's root: no leading slash, no `.`, no `..`, no empty
/// component. Empty means the root itself.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct LayerPath(Vec<u8>);

/// Why a name is not a path of a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum PathFault {
    Escapes,
    Bad(&'static str),
}

impl LayerPath {
    /// Reads an entry's name. A leading slash means the layer's root, as it
    /// does for every tar; `..` is resolved by the text alone and may not lead
    /// above the root.
    pub(super) fn parse(name: &[u8], limits: &Limits) -> Result<Self, PathFault> {
        if name.contains(&0) {
            return Err(PathFault::Bad("its path has a NUL byte"));
        }
        let mut components: Vec<&[u8]> = Vec::new();
        for component in name.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop().ok_or(PathFault::Escapes)?;
                }
                long if long.len() > NAME_MAX => {
                    return Err(PathFault::Bad(
                        "a component of its path has more than 255 bytes",
                    ));
                }
                plain => components.push(plain),
            }
        }
        if components.len() as u64 > limits.path_depth {
            return Err(PathFault::Bad("its path is too deep (see [image.limits])"));
        }
        let path = components.join(&b'/');
        if path.len() as u64 > limits.path_bytes.min(4_095) {
            return Err(PathFault::Bad("its path is too long (see [image.limits])"));
        }
        Ok(Self(path))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds it; the root for the root.
    pub(super) fn parent(&self) -> &[u8] {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => &self.0[..slash],
            None => b"",
        }
    }

    /// The last component; empty for the root.
    pub(super) fn name(&self) -> &[u8] {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// A sibling of this path.
    pub(super) fn with_name(&self, name: &[u8]) -> Self {
        let parent = self.parent();
        let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
        if !parent.is_empty() {
            path.extend_from_slice(parent);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path)
    }

    /// The directory that holds it, as a path.
    pub(super) fn parent_path(&self) -> Self {
        Self(self.parent().to_vec())
    }

    /// The members of a set that are beneath this path.
    pub(super) fn all_inside(&self, set: &BTreeSet<Self>) -> Vec<Self> {
        let mut prefix = self.0.clone();
        prefix.push(b'/');
        let first = Self(prefix);
        set.range(&first..)
            .take_while(|path| path.0.starts_with(&first.0))
            .cloned()
            .collect()
    }

    /// The components, the first one first.
    pub(super) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }
}

impl PathFault {
    pub(super) fn of_entry(self, name: &[u8]) -> UnpackError {
        match self {
            Self::Escapes => UnpackError::PathEscapes { path: shown(name) },
            Self::Bad(reason) => UnpackError::BadPath {
                path: shown(name),
                reason,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(name: &str) -> Result<String, PathFault> {
        LayerPath::parse(name.as_bytes(), &Limits::default())
            .map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn every_spelling_of_one_path_is_one_path() {
        for name in [
            "a/b",
            "/a/b",
            "./a/b",
            "a//b/",
            "a/./b",
            "a/x/../b",
            "//./a/b/.",
        ] {
            assert_eq!(parse(name).unwrap(), "a/b", "{name}");
        }
        for name in ["", "/", ".", "./", "a/.."] {
            assert_eq!(parse(name).unwrap(), "", "{name}");
        }
    }

    #[test]
    fn a_path_above_the_root_is_refused() {
        for name in ["..", "../a", "/..", "a/../../b", "./../a"] {
            assert_eq!(parse(name), Err(PathFault::Escapes), "{name}");
        }
    }

    #[test]
    fn what_no_file_system_takes_is_refused() {
        assert!(matches!(parse("a\0b"), Err(PathFault::Bad(_))));
        assert!(matches!(parse(&"n".repeat(256)), Err(PathFault::Bad(_))));
        assert!(matches!(parse(&"d/".repeat(257)), Err(PathFault::Bad(_))));
        assert!(matches!(
            parse(&format!(
                "{}x",
                "dddddddddddddddddddddddddddddd/".repeat(200)
            )),
            Err(PathFault::Bad(_))
        ));
        assert_eq!(parse(&"n".repeat(255)).unwrap().len(), 255);
    }

    proptest! {
        #[test]
        fn no_name_leads_out(name in "[a.\\./]{0,24}") {
            if let Ok(path) = parse(&name) {
                prop_assert!(!path.starts_with('/'));
                prop_assert!(path.split('/').all(|c| c != ".." && c != "."));
            }
        }
    }
}
