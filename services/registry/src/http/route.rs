//! Which end-point a path means.

use gantry_oci::{Digest, RepositoryName};
use percent_encoding::percent_decode_str;

use crate::error::RegistryError;

/// An end-point with what its path names. References of manifests are read
/// later, since a bad one is another error for a push than for a pull.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v1/search`
    Search,
    /// `/v2/<name>/tags/list`
    Tags { name: RepositoryName },
    /// `/v2/<name>/referrers/<digest>`
    Referrers {
        name: RepositoryName,
        subject: Digest,
    },
    /// `/v2/<name>/manifests/<reference>`
    Manifest {
        name: RepositoryName,
        reference: String,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob {
        name: RepositoryName,
        digest: Digest,
    },
    /// `/v2/<name>/blobs/uploads/`
    Uploads { name: RepositoryName },
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload { name: RepositoryName, id: String },
}

impl Route {
    pub(crate) fn parse(path: &str) -> Result<Self, RegistryError> {
        let unknown = || RegistryError::Endpoint {
            path: path.to_owned(),
        };
        let decoded = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_| unknown())?;
        match &*decoded {
            "/v2" | "/v2/" => return Ok(Self::Base),
            "/v2/_catalog" => return Ok(Self::Catalog),
            "/v1/search" => return Ok(Self::Search),
            _ => {}
        }
        let rest = decoded.strip_prefix("/v2/").ok_or_else(unknown)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let name = |parts: &[&str]| parts.join("/").parse::<RepositoryName>();
        match parts.as_slice() {
            [of @ .., "blobs", "uploads"] | [of @ .., "blobs", "uploads", ""] if !of.is_empty() => {
                Ok(Self::Uploads { name: name(of)? })
            }
            [of @ .., "blobs", "uploads", id] if !of.is_empty() => Ok(Self::Upload {
                name: name(of)?,
                id: (*id).to_owned(),
            }),
            [of @ .., "blobs", digest] if !of.is_empty() => Ok(Self::Blob {
                name: name(of)?,
                digest: digest.parse()?,
            }),
            [of @ .., "manifests", reference] if !of.is_empty() => Ok(Self::Manifest {
                name: name(of)?,
                reference: (*reference).to_owned(),
            }),
            [of @ .., "tags", "list"] if !of.is_empty() => Ok(Self::Tags { name: name(of)? }),
            [of @ .., "referrers", digest] if !of.is_empty() => Ok(Self::Referrers {
                name: name(of)?,
                subject: digest.parse()?,
            }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn paths_are_read_from_their_end() {
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        let route = |path: &str| Route::parse(path).unwrap();
        assert_eq!(route("/v2/"), Route::Base);
        assert_eq!(route("/v2"), Route::Base);
        assert_eq!(
            route("/v2/a/b/tags/list"),
            Route::Tags { name: name("a/b") }
        );
        // Names may have the fixed words in them.
        assert_eq!(
            route("/v2/blobs/uploads/manifests/tags/list"),
            Route::Tags {
                name: name("blobs/uploads/manifests")
            }
        );
        assert_eq!(
            route("/v2/a/blobs/uploads/"),
            Route::Uploads { name: name("a") }
        );
        assert_eq!(
            route("/v2/a/manifests/v1"),
            Route::Manifest {
                name: name("a"),
                reference: "v1".to_owned()
            }
        );
        assert_eq!(
            route(&format!("/v2/a/blobs/{}", D.replace(':', "%3A"))),
            Route::Blob {
                name: name("a"),
                digest: D.parse().unwrap()
            }
        );
    }

    #[test]
    fn paths_that_mean_nothing_say_why() {
        for path in ["/", "/v2/a", "/v2/tags/list", "/v3/", "/v2/a/tags"] {
            assert!(
                matches!(Route::parse(path), Err(RegistryError::Endpoint { .. })),
                "{path}"
            );
        }
        for path in ["/v2/A/tags/list", "/v2/../tags/list", "/v2/a//b/tags/list"] {
            assert!(
                matches!(Route::parse(path), Err(RegistryError::NameInvalid { .. })),
                "{path}"
            );
        }
        assert!(matches!(
            Route::parse("/v2/a/blobs/sha256:1"),
            Err(RegistryError::DigestInvalid { .. })
        ));
    }
}
