//! Unpacking a layer again from its packed form, which the store keeps.
//!
//! An unpacked layer is worth no more than the time it takes to make it: what a
//! power cut or a failing disk did to one is put right from the packed bytes,
//! whose digest says whether they are still what they were.

use gantry_oci::content::ContentError;

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::{Image, ImageRecord};
use crate::layers::NewLayer;
use crate::unpack::{self, UnpackError, Unpacked};

impl ImageStore {
    /// Unpacks those layers of an image that are not there, from its packed
    /// ones. Their keys. Blocks.
    pub(crate) fn restore_layers(&self, image: &Image) -> Result<Vec<String>, ImageError> {
        let mut restored = Vec::new();
        let chain_ids = image.config.chain_ids();
        for (position, record) in image.record.layers.iter().enumerate() {
            if self.shared.layers.contains(&record.key) {
                continue;
            }
            let (new, unpacked) = self.unpack_again(&image.record, position)?;
            let chain_id = chain_ids.get(position).unwrap_or(&record.diff_id);
            let layer = new.finish(&unpacked, chain_id)?;
            if layer.key != record.key {
                // What it needed of the layers below is there now and was not, or the other way round.
                let reason = "the layers below it are not those that it was unpacked over";
                return Err(ImageError::Layer {
                    digest: record.descriptor.digest.to_string(),
                    source: UnpackError::LowerMissing {
                        reason: reason.to_owned(),
                    },
                });
            }
            restored.push(layer.key);
        }
        Ok(restored)
    }

    /// Unpacks a layer of an image from any blob of the store that holds it.
    pub(crate) fn unpack_again(
        &self,
        record: &ImageRecord,
        position: usize,
    ) -> Result<(NewLayer, Unpacked), ImageError> {
        let layer = &record.layers[position];
        let mut below: Vec<_> = record.layers[..position]
            .iter()
            .rev()
            .map(|layer| self.shared.layers.directory(&layer.key))
            .collect();
        let limits = &self.shared.config.limits;
        let mut failure = None;
        for blob in self.packings_of_layer(layer) {
            let packed = match self.shared.content.open_blob(&blob.digest) {
                Ok((packed, _)) => packed,
                Err(error) => {
                    failure.get_or_insert(error.into());
                    continue;
                }
            };
            let new = self.shared.layers.begin()?;
            match unpack::unpack_as(packed, new.open()?, &layer.diff_id, limits, &mut below) {
                Ok(unpacked) => {
                    self.note_packing(&blob.digest, &layer.diff_id);
                    return Ok((new, unpacked));
                }
                Err(source) => {
                    let error = ImageError::Layer {
                        digest: blob.digest.to_string(),
                        source,
                    };
                    // That the first is not here says less than what is wrong with another.
                    match &failure {
                        Some(ImageError::Layer { .. }) => {}
                        _ => failure = Some(error),
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            let digest = layer.descriptor.digest.clone();
            ContentError::NotFound { digest }.into()
        }))
    }

    /// Puts right what a power cut did to unpacked layers. An image whose layers
    /// cannot be had again stays listed; using it says what to do.
    pub(crate) fn restore_all(&self) {
        for image in self.images() {
            match self.restore_layers(&image) {
                Ok(restored) if restored.is_empty() => {}
                Ok(restored) => {
                    tracing::info!(image = %image.id(), layers = restored.len(), "layers were unpacked again");
                    self.settle_layers_behind();
                }
                Err(error) => {
                    let error = gantry_kit::fault::chain(&error);
                    tracing::error!(image = %image.id(), error, "a layer of an image is not there and cannot be unpacked again; pull the image again");
                }
            }
        }
    }

    /// Whether all layers of an image are there.
    pub(crate) fn check_layers(&self, image: &Image, reference: &str) -> Result<(), ImageError> {
        let missing = |layer: &&crate::image::LayerRecord| !self.shared.layers.contains(&layer.key);
        match image.record.layers.iter().find(missing) {
            None => Ok(()),
            Some(layer) => Err(ImageError::LayerMissing {
                reference: reference.to_owned(),
                source: ContentError::NotFound {
                    digest: layer.diff_id.clone(),
                },
            }),
        }
    }
}
