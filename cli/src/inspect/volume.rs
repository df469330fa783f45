//! A volume in the shape of Docker's `VolumeInspect`.

use gantry_proto::image::v1::Volume;

use crate::display;
use crate::format::{Data, Field, Nil};

pub(crate) fn document(volume: &Volume) -> Data {
    Data::fields([
        Field::from((
            "CreatedAt",
            display::rfc3339_seconds(volume.created.as_ref()).into(),
        )),
        ("Driver", volume.driver.clone().into()).into(),
        ("Labels", Data::map_or_nil(volume.labels.clone())).into(),
        ("Mountpoint", volume.mountpoint.clone().into()).into(),
        ("Name", volume.name.clone().into()).into(),
        ("Options", Data::map_or_nil(volume.options.clone())).into(),
        ("Scope", "local".into()).into(),
        Field::unless_empty("Status", Data::Nil(Nil::Map)),
        Field::unless_empty("UsageData", Data::POINTER),
    ])
}
