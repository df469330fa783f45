//! An image in the shape of Docker's `ImageInspect`.

use gantry_oci::ImageConfig;
use gantry_proto::image::v1::InspectResponse;
use serde_json::Value;

use crate::display;
use crate::format::{Data, Field, Nil};

pub(crate) fn document(response: &InspectResponse) -> Data {
    let image = response.image.clone().unwrap_or_default();
    let platform = image.platform.clone().unwrap_or_default();
    let config = configuration(&response.config);
    let text = |key: &str| Data::from(config[key].as_str().unwrap_or_default());
    let comment = config["history"]
        .as_array()
        .and_then(|history| history.last())
        .and_then(|step| step["comment"].as_str())
        .unwrap_or_default();
    Data::fields([
        Field::from(("Id", image.id.into())),
        ("RepoTags", image.tags.into()).into(),
        ("RepoDigests", image.digests.into()).into(),
        ("Parent", response.parent.clone().into()).into(),
        ("Comment", comment.into()).into(),
        ("Created", display::rfc3339(image.created.as_ref()).into()).into(),
        ("DockerVersion", text("docker_version")).into(),
        ("Author", text("author")).into(),
        ("Config", image_config(&config["config"])).into(),
        ("Architecture", platform.architecture.into()).into(),
        Field::unless_empty("Variant", platform.variant),
        ("Os", platform.os.into()).into(),
        Field::unless_empty("OsVersion", text("os.version")),
        ("Size", image.size.into()).into(),
        // What older versions of Docker call it.
        ("VirtualSize", image.size.into()).into(),
        (
            "GraphDriver",
            Data::fields([("Data", Data::Nil(Nil::Map)), ("Name", "overlay2".into())]),
        )
            .into(),
        (
            "RootFS",
            Data::fields([
                ("Type", "layers".into()),
                ("Layers", config["rootfs"]["diff_ids"].clone().into()),
            ]),
        )
            .into(),
        (
            "Descriptor",
            Data::fields([
                ("mediaType", response.manifest_media_type.clone().into()),
                ("digest", image.manifest_digest.into()),
                ("size", response.manifest.len().into()),
            ]),
        )
            .into(),
    ])
}

/// An image's configuration in its one spelling: documents are written for readers
/// that take others too.
pub(crate) fn configuration(raw: &[u8]) -> Value {
    // What cannot be read was not accepted into the store.
    let read = ImageConfig::parse(raw).ok();
    read.and_then(|config| serde_json::to_value(config).ok())
        .unwrap_or_default()
}

/// What containers of it run, with every field that Docker shows: the image's own
/// document leaves out what is empty.
fn image_config(config: &Value) -> Data {
    let text = |key: &str| Data::from(config[key].as_str().unwrap_or_default());
    let flag = |key: &str| Data::from(config[key].as_bool().unwrap_or_default());
    let list = |key: &str| match &config[key] {
        Value::Array(items) => Data::list(items.clone()),
        _ => Data::Nil(Nil::List),
    };
    let map = |key: &str| match &config[key] {
        Value::Object(entries) => Data::map(entries.clone()),
        _ => Data::Nil(Nil::Map),
    };
    let check = match &config["Healthcheck"] {
        Value::Null => None,
        check => Some(check.clone()),
    };
    Data::fields([
        Field::from(("Hostname", text("Hostname"))),
        ("Domainname", text("Domainname")).into(),
        ("User", text("User")).into(),
        ("AttachStdin", flag("AttachStdin")).into(),
        ("AttachStdout", flag("AttachStdout")).into(),
        ("AttachStderr", flag("AttachStderr")).into(),
        Field::unless_empty("ExposedPorts", map("ExposedPorts")),
        ("Tty", flag("Tty")).into(),
        ("OpenStdin", flag("OpenStdin")).into(),
        ("StdinOnce", flag("StdinOnce")).into(),
        ("Env", list("Env")).into(),
        ("Cmd", list("Cmd")).into(),
        Field::unless_nil("Healthcheck", check),
        Field::unless_empty("ArgsEscaped", flag("ArgsEscaped")),
        ("Image", text("Image")).into(),
        ("Volumes", map("Volumes")).into(),
        ("WorkingDir", text("WorkingDir")).into(),
        ("Entrypoint", list("Entrypoint")).into(),
        ("OnBuild", list("OnBuild")).into(),
        ("Labels", map("Labels")).into(),
        Field::unless_empty("StopSignal", text("StopSignal")),
        Field::unless_empty("Shell", list("Shell")),
    ])
}
