//! Looking for images in a registry.

use crate::ImageStore;
use crate::error::ImageError;
use crate::list::Filter;
use crate::registry_client::{Credentials, Found};

/// Results where the caller does not say how many.
const LIMIT: u32 = 25;
/// The most results of one search.
const LIMIT_MAX: u32 = 100;

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct SearchOptions {
    /// "nginx", "host:5000/nginx".
    pub term: String,
    /// 0: the default.
    pub limit: u32,
    pub filters: Vec<Filter>,
    /// Absent: those of the configuration.
    pub credentials: Option<Credentials>,
}

/// What results must be like.
#[derive(Debug, Default)]
struct Wanted {
    stars: u64,
    official: Option<bool>,
    automated: Option<bool>,
}

impl ImageStore {
    /// Asks a registry for repositories; each with a name that can be pulled.
    pub async fn search(&self, options: &SearchOptions) -> Result<Vec<Found>, ImageError> {
        let wanted = Wanted::of(&options.filters)?;
        let limit = match options.limit {
            0 => LIMIT,
            limit if limit <= LIMIT_MAX => limit,
            limit => {
                return Err(ImageError::SearchLimit {
                    limit,
                    most: LIMIT_MAX,
                });
            }
        };
        let (host, term) = split(options.term.trim());
        if term.is_empty() {
            return Err(ImageError::Missing {
                field: "the term to search for",
            });
        }
        let client = &self.shared.client;
        let found = client
            .search(host, term, limit, options.credentials.clone())
            .await?;
        let fitting = found.into_iter().filter(|result| wanted.fits(result));
        Ok(fitting
            .map(|mut result| {
                if !host.is_empty() {
                    result.name = format!("{host}/{}", result.name);
                }
                result
            })
            .collect())
    }
}

/// The registry that a term names, if it does, and what is looked for there.
fn split(term: &str) -> (&str, &str) {
    let (host, rest) = match term.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("", term),
    };
    match host {
        // Docker Hub keeps the images without a user's name under this one.
        "" | "docker.io" | "index.docker.io" => ("", rest.strip_prefix("library/").unwrap_or(rest)),
        host => (host, rest),
    }
}

impl Wanted {
    fn of(filters: &[Filter]) -> Result<Self, ImageError> {
        let mut wanted = Self::default();
        for Filter { key, value } in filters {
            let refused = |reason| ImageError::Filter {
                key: key.clone(),
                value: value.clone(),
                reason,
            };
            let truth = || match value.to_ascii_lowercase().as_str() {
                "1" | "t" | "true" => Ok(Some(true)),
                "0" | "f" | "false" => Ok(Some(false)),
                _ => Err(refused("it is true or false")),
            };
            match key.as_str() {
                "stars" => {
                    let stars = value.parse().map_err(|_| refused("it is a number"))?;
                    wanted.stars = wanted.stars.max(stars);
                }
                "is-official" => wanted.official = truth()?,
                "is-automated" => wanted.automated = truth()?,
                _ => return Err(refused("there are stars, is-official and is-automated")),
            }
        }
        Ok(wanted)
    }

    fn fits(&self, result: &Found) -> bool {
        result.stars >= self.stars
            && self.official.is_none_or(|wanted| wanted == result.official)
            && self
                .automated
                .is_none_or(|wanted| wanted == result.automated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_may_name_its_registry() {
        assert_eq!(split("nginx"), ("", "nginx"));
        assert_eq!(split("library/nginx"), ("", "nginx"));
        assert_eq!(split("team/nginx"), ("", "team/nginx"));
        assert_eq!(split("docker.io/nginx"), ("", "nginx"));
        assert_eq!(split("host:5000/a/b"), ("host:5000", "a/b"));
        assert_eq!(split("localhost/a"), ("localhost", "a"));
        assert_eq!(split("quay.io/"), ("quay.io", ""));
    }
}
