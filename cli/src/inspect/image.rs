//! An image in the shape of Docker's `ImageInspect`.

use gantry_proto::image::v1::InspectResponse;
use serde_json::{Map, Value};

use super::{Document, fields};
use crate::display;

pub(crate) fn document(response: &InspectResponse) -> Document {
    let image = response.image.clone().unwrap_or_default();
    let platform = image.platform.clone().unwrap_or_default();
    // What is not JSON was not accepted into the store.
    let config: Value = serde_json::from_slice(&response.config).unwrap_or_default();
    let text = |key: &str| Document::from(config[key].as_str().unwrap_or_default());
    let comment = config["history"]
        .as_array()
        .and_then(|history| history.last())
        .and_then(|step| step["comment"].as_str())
        .unwrap_or_default();
    fields(vec![
        ("Id", image.id.into()),
        ("RepoTags", image.tags.into()),
        ("RepoDigests", image.digests.into()),
        ("Parent", "".into()),
        ("Comment", comment.into()),
        ("Created", display::rfc3339(image.created.as_ref()).into()),
        ("DockerVersion", text("docker_version")),
        ("Author", text("author")),
        (
            "Config",
            match &config["config"] {
                Value::Object(config) => Document::Value(Value::Object(config.clone())),
                _ => Document::Value(Value::Object(Map::new())),
            },
        ),
        ("Architecture", platform.architecture.into()),
        ("Variant", platform.variant.into()),
        ("Os", platform.os.into()),
        ("Size", image.size.into()),
        (
            "GraphDriver",
            fields(vec![
                ("Data", Value::Null.into()),
                ("Name", "overlay2".into()),
            ]),
        ),
        (
            "RootFS",
            fields(vec![
                ("Type", "layers".into()),
                ("Layers", config["rootfs"]["diff_ids"].clone().into()),
            ]),
        ),
        (
            "Descriptor",
            fields(vec![
                ("mediaType", response.manifest_media_type.clone().into()),
                ("digest", image.manifest_digest.into()),
                ("size", response.manifest.len().into()),
            ]),
        ),
    ])
}
