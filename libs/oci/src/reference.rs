//! Image references as people type them, by the grammar of the distribution project and Docker's normalisation.
//!
//! ```text
//! reference = [ domain "/" ] name [ ":" tag ] [ "@" digest ]
//! domain    = host [ ":" port ]
//! host      = label *( "." label ) | "[" IPv6 "]"
//! ```
//!
//! The first part counts as a domain when it has a dot, a colon or an upper-case
//! letter in it, or is `localhost`; otherwise the domain is `docker.io`, and a
//! name of one part is put under `library/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError, shorten};
use crate::name::{NameError, RepositoryName, Tag, TagError};

/// The domain of a reference that names none.
pub const DEFAULT_DOMAIN: &str = "docker.io";

/// The domain that stands for the engine's own registry, which is reached on its
/// Unix socket: `gantry.localhost/box:1`. The name is reserved: below `.localhost`
/// there is nobody else's host (RFC 6761).
pub const OWN_REGISTRY: &str = "gantry.localhost";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DOMAIN_MAX: usize = 261;

/// Why a text is not an image reference.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("the image reference is empty")]
    Empty,
    /// 64 hexadecimal characters are an image ID.
    #[error("{text:?} is an image ID, and can not be the name of an image")]
    ImageId { text: String },
    /// The registry's part is malformed.
    #[error(
        "image reference {text:?} has a malformed registry {domain:?} (expected host or host:port)"
    )]
    Domain { text: String, domain: String },
    /// The name is malformed.
    #[error("image reference {text:?} is malformed")]
    Name {
        text: String,
        #[source]
        source: NameError,
    },
    /// The tag is malformed.
    #[error("image reference {text:?} is malformed")]
    Tag {
        text: String,
        #[source]
        source: TagError,
    },
    /// The digest is malformed.
    #[error("image reference {text:?} is malformed")]
    Digest {
        text: String,
        #[source]
        source: DigestError,
    },
}

/// A normalised image reference: domain and name are always there, tag and digest where given.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    name: RepositoryName,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

impl Reference {
    /// Puts a reference together of a domain (`host`, `host:port`) and valid parts.
    pub fn new(
        domain: &str,
        name: RepositoryName,
        tag: Option<Tag>,
        digest: Option<Digest>,
    ) -> Result<Self, ReferenceError> {
        if !is_domain(domain) {
            return Err(ReferenceError::Domain {
                text: shorten(&format!("{domain}/{name}")),
                domain: shorten(domain),
            });
        }
        Ok(Self {
            domain: domain.to_owned(),
            name,
            tag,
            digest,
        })
    }

    /// The registry's host, with the port where one was given: `docker.io`, `127.0.0.1:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's name within its registry: `library/busybox`.
    #[must_use]
    pub const fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// The tag, where one was given.
    #[must_use]
    pub const fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// The digest, where one was given.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The host that serves the API for the domain, which differs for Docker Hub alone.
    #[must_use]
    pub fn api_host(&self) -> &str {
        if self.domain == DEFAULT_DOMAIN {
            "registry-1.docker.io"
        } else {
            &self.domain
        }
    }

    /// The same with `:latest` when there is neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(Tag::latest());
        }
        self
    }

    /// The same with another tag.
    #[must_use]
    pub fn with_tag(mut self, tag: Tag) -> Self {
        self.tag = Some(tag);
        self
    }

    /// The same with a digest.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// The same without tag and digest: the repository.
    #[must_use]
    pub fn repository(&self) -> Self {
        Self {
            tag: None,
            digest: None,
            ..self.clone()
        }
    }

    /// What comes after `manifests/` in a registry's URL: the digest, else the tag, else `latest`.
    #[must_use]
    pub fn manifest_reference(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag.as_str(),
            (None, None) => "latest",
        }
    }

    /// The full form, domain and all, which is the key to store an image under.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.spell(&format!("{}/{}", self.domain, self.name))
    }

    /// The short form that people know, as `Display` has it: `busybox:1.36`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.spell(&self.familiar_name())
    }

    /// The short form without tag and digest.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        let name = self.name.as_str();
        if self.domain == DEFAULT_DOMAIN {
            let short = name
                .strip_prefix(OFFICIAL_PREFIX)
                .filter(|short| !short.contains('/'))
                .unwrap_or(name);
            // Some names mean another thing without their domain: keep those whole.
            let (domain, rest) = split_domain(short);
            if domain == DEFAULT_DOMAIN && rest == short && !is_image_id(short) {
                return short.to_owned();
            }
        }
        format!("{}/{name}", self.domain)
    }

    fn spell(&self, name: &str) -> String {
        let mut text = name.to_owned();
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag.as_str());
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.familiar())
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.canonical()
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if is_image_id(text) {
            return Err(ReferenceError::ImageId {
                text: text.to_owned(),
            });
        }
        let shown = || shorten(text);
        let (domain, rest) = split_domain(text);
        if !is_domain(domain) {
            return Err(ReferenceError::Domain {
                text: shown(),
                domain: shorten(domain),
            });
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        let name = if domain == DEFAULT_DOMAIN && !name.contains('/') && !name.is_empty() {
            format!("{OFFICIAL_PREFIX}{name}")
        } else {
            name.to_owned()
        };
        Ok(Self {
            domain: domain.to_owned(),
            name: RepositoryName::try_from(name).map_err(|source| ReferenceError::Name {
                text: shown(),
                source,
            })?,
            tag: tag
                .map(str::parse)
                .transpose()
                .map_err(|source| ReferenceError::Tag {
                    text: shown(),
                    source,
                })?,
            digest: digest.map(str::parse).transpose().map_err(|source| {
                ReferenceError::Digest {
                    text: shown(),
                    source,
                }
            })?,
        })
    }
}

/// Splits off the domain, or supplies the default one.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((LEGACY_DEFAULT_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn is_image_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_domain(text: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if text.len() > DOMAIN_MAX {
        return false;
    }
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            !address.is_empty()
                && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    port.is_none_or(is_port)
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
