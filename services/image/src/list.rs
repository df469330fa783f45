//! Listing images, with Docker's filters.

use std::mem;
use std::sync::Arc;

use gantry_kit::times;
use gantry_oci::Reference;

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::Image;

/// One condition, as given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    pub key: String,
    pub value: String,
}

impl ImageStore {
    /// The images that pass the filters, the newest first. Without `all`, an
    /// image that has no name and that others were made from is left out.
    pub fn list(&self, all: bool, filters: &[Filter]) -> Result<Vec<Arc<Image>>, ImageError> {
        const KEYS: &str = "the keys are before, dangling, label, reference, since and until";
        let conditions = filters
            .iter()
            .map(|filter| match filter.key.as_str() {
                "reference" | "label" | "dangling" | "before" | "since" | "until" => {
                    self.condition(filter)
                }
                _ => Err(filter.wrong(KEYS)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let catalogue = self.catalogue();
        let is_parent = |image: &Image| catalogue.children(image.id()).next().is_some();
        let mut images: Vec<_> = catalogue
            .images()
            .filter(|image| passes(&conditions, image))
            .filter(|image| all || !image.record.is_nameless() || !is_parent(image))
            .map(|image| with_matching_names(&conditions, image))
            .collect();
        drop(catalogue);
        images.sort_by(|a, b| {
            b.created()
                .cmp(&a.created())
                .then_with(|| a.id().cmp(b.id()))
        });
        Ok(images)
    }

    pub(crate) fn condition(&self, filter: &Filter) -> Result<Condition, ImageError> {
        let value = filter.value.as_str();
        let label = || match value.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (value.to_owned(), None),
        };
        Ok(match filter.key.as_str() {
            "reference" if value.is_empty() => return Err(filter.wrong("it names no image")),
            "reference" => Condition::Reference(value.to_owned()),
            "label" => {
                let (key, value) = label();
                Condition::Label(key, value)
            }
            "label!" => {
                let (key, value) = label();
                Condition::NoLabel(key, value)
            }
            "dangling" => match value {
                "true" | "1" => Condition::Dangling(true),
                "false" | "0" => Condition::Dangling(false),
                _ => return Err(filter.wrong("it is true or false")),
            },
            "before" => Condition::Before(self.resolve(value)?.created()),
            "since" => Condition::Since(self.resolve(value)?.created()),
            "until" => match times::point(value, jiff::Timestamp::now()) {
                Ok(time) => Condition::Until(time),
                Err(_) => {
                    return Err(filter.wrong(
                        "say how long ago (10m, 24h), seconds since 1970, or 2006-01-02T15:04:05Z",
                    ));
                }
            },
            _ => return Err(filter.wrong("there is no such key")),
        })
    }
}

impl Filter {
    pub(crate) fn wrong(&self, reason: &'static str) -> ImageError {
        ImageError::Filter {
            key: self.key.clone(),
            value: self.value.clone(),
            reason,
        }
    }
}

/// One filter, understood.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    Reference(String),
    Label(String, Option<String>),
    NoLabel(String, Option<String>),
    Dangling(bool),
    Before(Option<jiff::Timestamp>),
    Since(Option<jiff::Timestamp>),
    Until(jiff::Timestamp),
}

/// Whether an image passes: of several conditions on one key any may hold, but
/// all that are about labels and times.
pub(crate) fn passes(conditions: &[Condition], image: &Image) -> bool {
    conditions.iter().all(|condition| {
        condition.holds(image)
            || (condition.is_one_of_many()
                && conditions
                    .iter()
                    .filter(|other| mem::discriminant(*other) == mem::discriminant(condition))
                    .any(|other| other.holds(image)))
    })
}

fn with_matching_names(conditions: &[Condition], image: &Arc<Image>) -> Arc<Image> {
    let patterns = || {
        conditions.iter().filter_map(|condition| match condition {
            Condition::Reference(pattern) => Some(pattern),
            _ => None,
        })
    };
    let matches = |name: &Reference| patterns().any(|pattern| matches_name(pattern, name));
    if patterns().next().is_none() || image.record.names().all(matches) {
        return Arc::clone(image);
    }
    let mut shown = Image::clone(image);
    shown.record.tags.retain(|name| matches(name));
    shown.record.digests.retain(|name| matches(name));
    Arc::new(shown)
}

impl Condition {
    /// Whether it suffices that another condition of its kind holds.
    const fn is_one_of_many(&self) -> bool {
        matches!(self, Self::Reference(_) | Self::Dangling(_))
    }

    fn holds(&self, image: &Image) -> bool {
        let has = |key: &String, value: &Option<String>| {
            let found = image.config.config.labels.get(key);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        match self {
            Self::Reference(pattern) => {
                image.record.names().any(|name| matches_name(pattern, name))
            }
            Self::Label(key, value) => has(key, value),
            Self::NoLabel(key, value) => !has(key, value),
            Self::Dangling(dangling) => image.record.tags.is_empty() == *dangling,
            Self::Before(time) => image.created() < *time,
            Self::Since(time) => image.created() > *time,
            Self::Until(time) => image.created().is_none_or(|created| created <= *time),
        }
    }
}

/// Whether a name, with its tag or without, is what a pattern means.
fn matches_name(pattern: &str, name: &Reference) -> bool {
    let short = name.familiar();
    let spelled = [short.as_str(), &name.canonical(), &name.familiar_name()].map(str::to_owned);
    spelled
        .iter()
        .any(|text| glob(pattern.as_bytes(), text.as_bytes()))
}

/// `*` and `?` stop at a slash, as in Docker (Go's path.Match).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            let end = text.iter().position(|&b| b == b'/').unwrap_or(text.len());
            (0..=end).any(|skip| glob(rest, &text[skip..]))
        }
        (Some((b'?', rest)), Some((&b, after))) => b != b'/' && glob(rest, after),
        (Some((a, rest)), Some((b, after))) => a == b && glob(rest, after),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_as_docker_s_do() {
        let name: Reference = "debian:12".parse().unwrap();
        for pattern in [
            "debian",
            "debian:12",
            "deb*",
            "d?bian:1*",
            "docker.io/library/debian:*",
        ] {
            assert!(matches_name(pattern, &name), "{pattern}");
        }
        for pattern in ["debian:11", "ebian", "*/debian", "docker.io/*"] {
            assert!(!matches_name(pattern, &name), "{pattern}");
        }
        let name: Reference = "host:5000/a/b:t".parse().unwrap();
        assert!(matches_name("host:5000/*/b", &name));
        assert!(!matches_name("host:5000/*", &name));
    }
}
