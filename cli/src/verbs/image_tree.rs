//! `gantry images --tree`: each image with its layers, and who else has them.

use std::collections::HashMap;

use gantry_proto::image::v1::{Image, ImageLayer};

use crate::display;

/// The images and their layers, the lowest first, and what they take in all.
pub(crate) fn text(images: &[Image], whole: bool) -> String {
    let mut holders: HashMap<&str, (u64, usize)> = HashMap::new();
    for image in images {
        let mut own: Vec<&ImageLayer> = image.layers.iter().collect();
        own.sort_by(|a, b| a.diff_id.cmp(&b.diff_id));
        own.dedup_by(|a, b| a.diff_id == b.diff_id);
        for layer in own {
            holders.entry(&layer.diff_id).or_insert((layer.size, 0)).1 += 1;
        }
    }
    let shared_by = |layer: &ImageLayer| holders.get(layer.diff_id.as_str()).map_or(1, |h| h.1);
    let digest = |digest: &str| {
        if whole {
            digest.to_owned()
        } else {
            display::short_id(digest)
        }
    };
    let mut text = String::new();
    for image in images {
        let names = if image.tags.is_empty() {
            "<none>".to_owned()
        } else {
            image.tags.join(", ")
        };
        let shared: u64 = image
            .layers
            .iter()
            .filter(|layer| shared_by(layer) > 1)
            .map(|layer| layer.size)
            .sum();
        text.push_str(&format!(
            "{names}  {}  {} ({} shared, {} own)\n",
            digest(&image.id),
            display::size(image.size),
            display::size(shared),
            display::size(image.size.saturating_sub(shared)),
        ));
        let last = image.layers.len().saturating_sub(1);
        for (position, layer) in image.layers.iter().enumerate() {
            let branch = if position == last { "└─" } else { "├─" };
            let others = match shared_by(layer) {
                0 | 1 => String::new(),
                2 => "  shared with 1 other image".to_owned(),
                count => format!("  shared with {} other images", count - 1),
            };
            text.push_str(&format!(
                "{branch} {}  {}{others}\n",
                digest(&layer.diff_id),
                display::size(layer.size),
            ));
        }
    }
    let total: u64 = holders.values().map(|(size, _)| size).sum();
    let shared = holders.values().filter(|(_, count)| *count > 1);
    let shared: u64 = shared.map(|(size, _)| size).sum();
    text.push_str(&format!(
        "{} images, {} layers: {} ({} shared, {} own)\n",
        images.len(),
        holders.len(),
        display::size(total),
        display::size(shared),
        display::size(total - shared),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_layers_are_marked_and_count_once() {
        let layer = |name: &str, size| ImageLayer {
            diff_id: format!("sha256:{name:0<64}"),
            size,
            ..ImageLayer::default()
        };
        let image = |tag: &str, layers: Vec<ImageLayer>| Image {
            id: format!("sha256:{tag:e<64}"),
            tags: vec![tag.to_owned()],
            size: layers.iter().map(|layer| layer.size).sum(),
            layers,
            ..Image::default()
        };
        let images = [
            image("a", vec![layer("1", 1000), layer("2", 20)]),
            image("b", vec![layer("1", 1000)]),
        ];
        assert_eq!(
            text(&images, false),
            "a  aeeeeeeeeeee  1.02kB (1kB shared, 20B own)\n\
             ├─ 100000000000  1kB  shared with 1 other image\n\
             └─ 200000000000  20B\n\
             b  beeeeeeeeeee  1kB (1kB shared, 0B own)\n\
             └─ 100000000000  1kB  shared with 1 other image\n\
             2 images, 2 layers: 1.02kB (1kB shared, 20B own)\n"
        );
    }
}
