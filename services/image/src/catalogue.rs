//! All images in memory, and how a text finds one.
//!
//! Looking up never touches the disk: `run` waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gantry_oci::{Digest, Reference};

use crate::error::ImageError;
use crate::image::Image;

/// All images. Cheap to clone is each image, not the whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalogue {
    by_id: BTreeMap<Digest, Arc<Image>>,
    /// Names with tags and names with digests.
    by_name: HashMap<Reference, Digest>,
}

impl Catalogue {
    pub(crate) fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.by_id.values()
    }

    pub(crate) fn get(&self, id: &Digest) -> Option<&Arc<Image>> {
        self.by_id.get(id)
    }

    /// The images that were made from one.
    pub(crate) fn children(&self, id: &Digest) -> impl Iterator<Item = &Arc<Image>> {
        self.images()
            .filter(move |image| image.record.parent.as_ref() == Some(id))
    }

    pub(crate) fn named(&self, name: &Reference) -> Option<&Arc<Image>> {
        self.by_name.get(name).and_then(|id| self.by_id.get(id))
    }

    /// Puts an image in, or a new version of its record.
    pub(crate) fn insert(&mut self, image: Arc<Image>) {
        self.remove(&image.record.id);
        for name in image.record.tags.iter().chain(&image.record.digests) {
            self.by_name.insert(name.clone(), image.record.id.clone());
        }
        self.by_id.insert(image.record.id.clone(), image);
    }

    pub(crate) fn remove(&mut self, id: &Digest) -> Option<Arc<Image>> {
        let image = self.by_id.remove(id)?;
        for name in image.record.tags.iter().chain(&image.record.digests) {
            if self.by_name.get(name) == Some(id) {
                self.by_name.remove(name);
            }
        }
        Some(image)
    }

    /// Finds the image that a text means: an id, a name, a digest, or the
    /// beginning of an id, in Docker's order.
    pub(crate) fn resolve(&self, text: &str) -> Result<&Arc<Image>, ImageError> {
        let missing = || ImageError::NotFound {
            reference: text.to_owned(),
        };
        let whole_id = if text.contains(':') {
            text.parse::<Digest>().ok()
        } else {
            Digest::from_hex(gantry_oci::Algorithm::Sha256, text).ok()
        };
        if let Some(digest) = whole_id {
            let found = self.by_id.get(&digest);
            let by_manifest = || self.images().find(|image| image.record.manifest == digest);
            return found.or_else(by_manifest).ok_or_else(missing);
        }
        let parsed = text.parse::<Reference>();
        if let Ok(reference) = &parsed
            && let Some(image) = self.named(&lookup_name(reference.clone()))
        {
            return Ok(image);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if !prefix.is_empty()
            && prefix
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            let mut matching = self
                .images()
                .filter(|image| image.id().hex().starts_with(prefix));
            if let Some(image) = matching.next() {
                return match matching.next() {
                    None => Ok(image),
                    Some(_) => Err(ImageError::Ambiguous {
                        reference: text.to_owned(),
                    }),
                };
            }
        }
        match parsed {
            Ok(_) => Err(missing()),
            Err(_) if text.starts_with("sha256:") => Err(missing()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The name by which an image with this reference is listed: a digest decides
/// alone, whatever tag stands before it.
pub(crate) fn lookup_name(reference: Reference) -> Reference {
    match reference.digest().cloned() {
        Some(digest) => reference.repository().with_digest(digest),
        None => reference.with_default_tag(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::image::ImageRecord;
    use bytes::Bytes;
    use gantry_oci::{ImageConfig, MediaType};

    fn image(hex: &str, tags: &[&str], digests: &[&str]) -> Arc<Image> {
        let id = Digest::from_hex(gantry_oci::Algorithm::Sha256, &format!("{hex:0<64}")).unwrap();
        let names = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect();
        Arc::new(Image {
            record: ImageRecord {
                manifest: Digest::sha256_of(hex.as_bytes()),
                manifest_media_type: MediaType::OciManifest,
                index: None,
                layers: Vec::new(),
                tags: names(tags),
                digests: names(digests),
                parent: None,
                id,
            },
            config: ImageConfig::default(),
            config_raw: Bytes::new(),
        })
    }

    fn catalogue() -> Catalogue {
        let digest = Digest::sha256_of(b"x");
        let mut catalogue = Catalogue::default();
        catalogue.insert(image(
            "abc1",
            &["debian:12", "localhost:5000/deb:1"],
            &[&format!("debian@{digest}")],
        ));
        catalogue.insert(image("abc2", &["beef:latest"], &[]));
        catalogue.insert(image("beef", &[], &[]));
        catalogue
    }

    #[test]
    fn an_image_is_found_by_all_its_names() {
        let catalogue = catalogue();
        let find = |text: &str| catalogue.resolve(text).unwrap().id().hex()[..4].to_owned();
        let id = format!("{:0<64}", "abc1");
        let digest = Digest::sha256_of(b"x");
        for text in [
            "debian:12",
            "docker.io/library/debian:12",
            "localhost:5000/deb:1",
            &id,
            &format!("sha256:{id}"),
            "abc1",
            "sha256:abc1",
            &format!("debian@{digest}"),
            &format!("debian:whatever@{digest}"),
            Digest::sha256_of(b"abc1").as_str(),
        ] {
            assert_eq!(find(text), "abc1", "{text}");
        }
        // A name wins over the beginning of an id.
        assert_eq!(find("beef"), "abc2");
        assert_eq!(find("beef0"), "beef");
    }

    #[test]
    fn what_is_not_there_or_not_clear_is_an_error() {
        let catalogue = catalogue();
        let error = |text: &str| catalogue.resolve(text).unwrap_err();
        assert!(matches!(error("abc"), ImageError::Ambiguous { .. }));
        assert!(matches!(error("debian"), ImageError::NotFound { .. }));
        assert!(matches!(error("debian:13"), ImageError::NotFound { .. }));
        assert!(matches!(error("sha256:fff"), ImageError::NotFound { .. }));
        assert!(matches!(error("UPPER"), ImageError::Reference(_)));
        assert!(matches!(error(""), ImageError::Reference(_)));
    }

    #[test]
    fn an_image_that_is_removed_is_found_no_more() {
        let mut catalogue = catalogue();
        let id = catalogue.resolve("debian:12").unwrap().id().clone();
        catalogue.remove(&id).unwrap();
        assert!(catalogue.resolve("debian:12").is_err());
        assert!(catalogue.get(&id).is_none());
    }
}
