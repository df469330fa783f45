//! A volume in the shape of Docker's `VolumeInspect`.

use std::collections::HashMap;

use gantry_proto::image::v1::Volume;
use serde_json::{Map, Value};

use super::{Document, fields};
use crate::display;

pub(crate) fn document(volume: &Volume) -> Document {
    fields(vec![
        (
            "CreatedAt",
            display::rfc3339_seconds(volume.created.as_ref()).into(),
        ),
        ("Driver", volume.driver.clone().into()),
        ("Labels", or_null(&volume.labels)),
        ("Mountpoint", volume.mountpoint.clone().into()),
        ("Name", volume.name.clone().into()),
        ("Options", or_null(&volume.options)),
        ("Scope", "local".into()),
    ])
}

fn or_null(map: &HashMap<String, String>) -> Document {
    if map.is_empty() {
        return Value::Null.into();
    }
    let map: Map<String, Value> = map
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    map.into()
}
