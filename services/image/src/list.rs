//! Listing images, with Docker's filters.

use std::sync::Arc;

use gantry_oci::Reference;

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::Image;

/// One condition. Of several for one key any may hold, of several keys all must.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    pub key: String,
    pub value: String,
}

impl ImageStore {
    /// The images that pass the filters, the newest first.
    pub fn list(&self, filters: &[Filter]) -> Result<Vec<Arc<Image>>, ImageError> {
        let conditions = filters
            .iter()
            .map(|filter| Ok((filter.key.as_str(), self.condition(filter)?)))
            .collect::<Result<Vec<_>, ImageError>>()?;
        let passes = |image: &Image| {
            let keys = conditions.iter().map(|(key, _)| *key);
            keys.into_iter().all(|key| {
                let mut same = conditions.iter().filter(|(k, _)| *k == key);
                same.any(|(_, condition)| condition.holds(image))
            })
        };
        let mut images: Vec<_> = self
            .images()
            .into_iter()
            .filter(|image| passes(image))
            .collect();
        images.sort_by(|a, b| {
            b.created()
                .cmp(&a.created())
                .then_with(|| a.id().cmp(b.id()))
        });
        Ok(images)
    }

    fn condition(&self, filter: &Filter) -> Result<Condition, ImageError> {
        let wrong = |reason| ImageError::Filter {
            key: filter.key.clone(),
            value: filter.value.clone(),
            reason,
        };
        let value = filter.value.as_str();
        Ok(match filter.key.as_str() {
            "reference" if value.is_empty() => return Err(wrong("it names no image")),
            "reference" => Condition::Reference(value.to_owned()),
            "label" => match value.split_once('=') {
                Some((key, value)) => Condition::Label(key.to_owned(), Some(value.to_owned())),
                None => Condition::Label(value.to_owned(), None),
            },
            "dangling" => match value {
                "true" | "1" => Condition::Dangling(true),
                "false" | "0" => Condition::Dangling(false),
                _ => return Err(wrong("it is true or false")),
            },
            "before" => Condition::Before(self.resolve(value)?.created()),
            "since" => Condition::Since(self.resolve(value)?.created()),
            _ => {
                return Err(wrong(
                    "the keys are before, dangling, label, reference and since",
                ));
            }
        })
    }
}

enum Condition {
    Reference(String),
    Label(String, Option<String>),
    Dangling(bool),
    Before(Option<jiff::Timestamp>),
    Since(Option<jiff::Timestamp>),
}

impl Condition {
    fn holds(&self, image: &Image) -> bool {
        match self {
            Self::Reference(pattern) => {
                let names = image.record.tags.iter().chain(&image.record.digests);
                names.into_iter().any(|name| matches_name(pattern, name))
            }
            Self::Label(key, value) => {
                let found = image.config.config.labels.get(key);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
            Self::Dangling(dangling) => image.record.tags.is_empty() == *dangling,
            Self::Before(time) => image.created() < *time,
            Self::Since(time) => image.created() > *time,
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
