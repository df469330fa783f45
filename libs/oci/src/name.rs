//! Names of repositories and tags, by the grammar of the OCI distribution specification.
//!
//! ```text
//! name      = component *( "/" component )                 at most 255 characters
//! component = alnum *( separator alnum )
//! separator = "." | "_" | "__" | 1*"-"
//! alnum     = 1*( a-z | 0-9 )
//! tag       = ( letter | digit | "_" ) *127( letter | digit | "_" | "." | "-" )
//! ```
//!
//! A component can be neither `.` nor `..` nor begin with `_`, so a name is
//! always a safe relative path, and `_`-names are free for a store's own files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::shorten;

/// The longest repository name, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest tag, in bytes.
pub const TAG_MAX: usize = 128;

/// Why a text is not a repository name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("the repository name is empty")]
    Empty,
    /// Upper case, the most usual mistake, has its own line.
    #[error("repository name {name:?} must be lower case")]
    UpperCase { name: String },
    /// Too long.
    #[error("the repository name has {length} characters, more than {NAME_MAX}")]
    Length { length: usize },
    /// A path component breaks the grammar.
    #[error(
        "repository name {name:?} is malformed at {component:?} (each part between slashes is a-z and 0-9, joined by one of . _ __ or dashes)"
    )]
    Component { name: String, component: String },
}

/// Why a text is not a tag.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "tag {tag:?} is malformed (1 to {TAG_MAX} of A-Z a-z 0-9 _ . - and not beginning with . or -)"
)]
pub struct TagError {
    /// The offending text, shortened.
    pub tag: String,
}

fn is_component(text: &str) -> bool {
    let is_alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let word = rest.iter().take_while(|b| is_alnum(b)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        rest = match rest {
            [] => return true,
            [b'_', b'_', tail @ ..] | [b'_' | b'.', tail @ ..] => tail,
            [b'-', ..] => &rest[rest.iter().take_while(|b| **b == b'-').count()..],
            _ => return false,
        };
    }
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $error:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

text_newtype! {
    /// The name of a repository within a registry, such as `library/busybox`.
    RepositoryName, NameError
}

text_newtype! {
    /// A tag, such as `latest`.
    Tag, TagError
}

impl TryFrom<String> for RepositoryName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > NAME_MAX {
            return Err(NameError::Length { length: name.len() });
        }
        if name.chars().any(char::is_uppercase) {
            return Err(NameError::UpperCase { name });
        }
        if let Some(component) = name.split('/').find(|part| !is_component(part)) {
            return Err(NameError::Component {
                component: component.to_owned(),
                name,
            });
        }
        Ok(Self(name))
    }
}

impl Tag {
    /// The tag that is meant when none is given.
    #[must_use]
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }
}

impl TryFrom<String> for Tag {
    type Error = TagError;

    fn try_from(tag: String) -> Result<Self, Self::Error> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = tag.as_bytes();
        let valid = bytes.len() <= TAG_MAX
            && bytes.first().is_some_and(|first| is_word(*first))
            && bytes
                .iter()
                .all(|b| is_word(*b) || matches!(b, b'.' | b'-'));
        if valid {
            Ok(Self(tag))
        } else {
            Err(TagError { tag: shorten(&tag) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_grammar() {
        for good in [
            "a",
            "library/busybox",
            "a/b/c/d/e",
            "foo-bar",
            "foo---bar",
            "foo_bar",
            "foo__bar",
            "foo.bar/baz",
            "0/1",
            "xn--n3h",
        ] {
            assert_eq!(good.parse::<RepositoryName>().unwrap().as_str(), good);
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "-a", "a-", ".a", "a.", "a..b", "a___b", "a._b", "_a",
            "a_", "..", "a/../b", "a b", "a:b", "é", "a\0", "A", "a@b",
        ] {
            assert!(
                bad.parse::<RepositoryName>().is_err(),
                "{bad:?} was accepted"
            );
        }
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        assert_eq!(
            "a".repeat(256).parse::<RepositoryName>(),
            Err(NameError::Length { length: 256 })
        );
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["latest", "1.0", "_x", "A-b_c.d", &"t".repeat(128)] {
            assert!(good.parse::<Tag>().is_ok(), "{good:?} was refused");
        }
        for bad in ["", ".a", "-a", "a/b", "a:b", "a b", "é", &"t".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?} was accepted");
        }
    }
}
