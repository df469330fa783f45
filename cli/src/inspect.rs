//! What `inspect` shows, in Docker's shape: scripts and templates read it.

pub(crate) mod container;
mod container_config;
mod host_config;
pub(crate) mod image;
pub(crate) mod network;
mod network_settings;
pub(crate) mod volume;

use serde::ser::Serialize as _;

use crate::format::Data;

/// `documents` as an array with Docker's indent of four.
pub(crate) fn pretty(documents: &[Data]) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // A document has text for keys, and memory does not refuse a write.
    let _cannot_fail = documents.serialize(&mut serializer);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn fields_keep_their_order() {
        let document = Data::fields([
            ("Id", "x".into()),
            ("Args", Vec::<Value>::new().into()),
            ("State", Data::fields([("Pid", 1.into())])),
        ]);
        assert_eq!(
            pretty(&[document]),
            "[\n    {\n        \"Id\": \"x\",\n        \"Args\": [],\n        \"State\": {\n            \"Pid\": 1\n        }\n    }\n]"
        );
        assert_eq!(pretty(&[]), "[]");
    }
}
