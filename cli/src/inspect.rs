//! What `inspect` shows, in Docker's shape: scripts and templates read it.

pub(crate) mod container;
mod host_config;
pub(crate) mod image;
pub(crate) mod volume;

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;

/// A document whose fields keep their order.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Fields(Vec<(&'static str, Document)>),
    Value(Value),
}

/// A document of fields.
pub(crate) fn fields(fields: Vec<(&'static str, Document)>) -> Document {
    Document::Fields(fields)
}

impl<T: Into<Value>> From<T> for Document {
    fn from(value: T) -> Self {
        Self::Value(value.into())
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Fields(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl Document {
    /// For templates.
    pub(crate) fn value(&self) -> Value {
        match self {
            Self::Value(value) => value.clone(),
            Self::Fields(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), value.value()))
                    .collect(),
            ),
        }
    }
}

/// `documents` as an array with Docker's indent of four.
pub(crate) fn pretty(documents: &[Document]) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // A document has text for keys, and memory does not refuse a write.
    let _cannot_fail = documents.serialize(&mut serializer);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order() {
        let document = fields(vec![
            ("Id", "x".into()),
            ("Args", Vec::<Value>::new().into()),
            ("State", fields(vec![("Pid", 1.into())])),
        ]);
        assert_eq!(
            pretty(&[document]),
            "[\n    {\n        \"Id\": \"x\",\n        \"Args\": [],\n        \"State\": {\n            \"Pid\": 1\n        }\n    }\n]"
        );
        assert_eq!(pretty(&[]), "[]");
    }
}
