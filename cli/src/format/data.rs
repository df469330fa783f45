//! What templates go over, and `inspect` shows: values as Go has them.
//!
//! JSON knows one null and one kind of object; a template can tell more apart,
//! and scripts rely on it:
//!
//! | value | in a template | in JSON |
//! | --- | --- | --- |
//! | a field that a structure does not have | an error | not there |
//! | a key that a map does not have | `<no value>` | not there |
//! | no list, no map, nothing behind a pointer | `[]`, `map[]`, `<nil>` | `null` |
//! | a field that is left out where it is empty | as any other | not there |

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Number, Value};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Nil(Nil),
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Data>),
    /// Keys that are data themselves: labels, ports.
    Map(BTreeMap<String, Data>),
    /// Fields, in their order.
    Struct(Vec<Field>),
}

/// What there is none of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nil {
    /// Not even that is known.
    Value,
    Pointer,
    List,
    Map,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    pub(crate) name: Cow<'static, str>,
    pub(crate) value: Data,
    /// Templates see it, JSON does not.
    hidden: bool,
}

impl Field {
    /// A field that JSON leaves out where there is nothing in it (Go's
    /// `omitempty`).
    pub(crate) fn unless_empty(name: &'static str, value: impl Into<Data>) -> Self {
        let value = value.into();
        Self {
            hidden: !value.is_true(),
            ..Self::from((name, value))
        }
    }

    /// A field that JSON leaves out where a pointer leads nowhere.
    pub(crate) fn unless_nil(name: &'static str, value: Option<impl Into<Data>>) -> Self {
        Self {
            hidden: value.is_none(),
            ..Self::from((name, Data::pointer(value)))
        }
    }

    /// A field that is for templates only.
    pub(crate) fn for_templates(name: &'static str, value: impl Into<Data>) -> Self {
        Self {
            hidden: true,
            ..Self::from((name, value.into()))
        }
    }
}

impl From<(&'static str, Data)> for Field {
    fn from((name, value): (&'static str, Data)) -> Self {
        Self {
            name: name.into(),
            value,
            hidden: false,
        }
    }
}

impl Data {
    pub(crate) const POINTER: Self = Self::Nil(Nil::Pointer);

    /// A structure.
    pub(crate) fn fields<F: Into<Field>>(fields: impl IntoIterator<Item = F>) -> Self {
        Self::Struct(fields.into_iter().map(Into::into).collect())
    }

    pub(crate) fn map<V: Into<Self>>(entries: impl IntoIterator<Item = (String, V)>) -> Self {
        let entries = entries.into_iter();
        Self::Map(entries.map(|(key, value)| (key, value.into())).collect())
    }

    pub(crate) fn list<V: Into<Self>>(items: impl IntoIterator<Item = V>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }

    /// A list, or none where it is empty.
    pub(crate) fn list_or_nil<V: Into<Self>>(items: impl IntoIterator<Item = V>) -> Self {
        match Self::list(items) {
            Self::List(items) if items.is_empty() => Self::Nil(Nil::List),
            list => list,
        }
    }

    /// A map, or none where it is empty.
    pub(crate) fn map_or_nil<V: Into<Self>>(
        entries: impl IntoIterator<Item = (String, V)>,
    ) -> Self {
        match Self::map(entries) {
            Self::Map(entries) if entries.is_empty() => Self::Nil(Nil::Map),
            map => map,
        }
    }

    /// What a pointer leads to.
    pub(crate) fn pointer(value: Option<impl Into<Self>>) -> Self {
        value.map_or(Self::POINTER, Into::into)
    }

    /// All but zero, false, nothing and what is empty.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Nil(_) => false,
            Self::Bool(value) => *value,
            Self::Number(number) => number.as_f64() != Some(0.0),
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(entries) => !entries.is_empty(),
            Self::Struct(_) => true,
        }
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            _ => None,
        }
    }

    pub(crate) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    pub(crate) fn json(&self) -> String {
        // The keys are text, and memory does not refuse a write.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Objects become structures; see [`Data::map`].
impl<T: Into<Value>> From<T> for Data {
    fn from(value: T) -> Self {
        match value.into() {
            Value::Null => Self::Nil(Nil::Value),
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => Self::Number(number),
            Value::String(text) => Self::Text(text),
            Value::Array(items) => Self::list(items),
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| Field {
                    name: name.into(),
                    value: value.into(),
                    hidden: false,
                });
                Self::Struct(fields.collect())
            }
        }
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil(_) => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => items.serialize(serializer),
            Self::Map(entries) => entries.serialize(serializer),
            Self::Struct(fields) => {
                let mut map = serializer.serialize_map(None)?;
                for field in fields.iter().filter(|field| !field.hidden) {
                    map.serialize_entry(&field.name, &field.value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_leaves_out_what_is_empty_and_keeps_the_order() {
        let data = Data::fields([
            Field::from(("Z", Data::from(1))),
            Field::unless_empty("Health", Data::POINTER),
            Field::unless_empty("Ports", Data::map([("80/tcp".to_owned(), "x")])),
            Field::from(("A", Data::list_or_nil(Vec::<String>::new()))),
        ]);
        assert_eq!(data.json(), r#"{"Z":1,"Ports":{"80/tcp":"x"},"A":null}"#);
    }
}
