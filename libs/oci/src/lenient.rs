//! JSON documents as Go's `encoding/json` reads them.
//!
//! Most documents of the container world are written by programs whose readers
//! are Go's, and are only as correct as those demand. Go matches the names of a
//! struct's fields whatever their case, takes the last of a field that is given
//! twice (objects are merged), and takes `null` for the zero value anywhere.
//! Docker's command lists also take a text for a list of one.
//!
//! A [`Shape`] says where a document has fields with names of their own, and
//! where it has names of the author's (labels, annotations), which are kept as
//! they are. [`read`] brings a document to the one spelling that our types have,
//! before serde reads it: no type needs to know of any of this. What a shape
//! does not name is kept, so that a configuration can be written again.
//!
//! Bytes that are no UTF-8 become U+FFFD, as with Go. Wrong types are still
//! refused: a number is no text.
//!
//! The digest of a document is that of its bytes: keep them, this changes what
//! is read and nothing else. Nesting is limited to serde_json's 128 levels.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

/// What is known of a value's form.
#[derive(Debug)]
pub enum Shape {
    /// It is kept as it is.
    Any,
    /// A text. `null` in a list or a map stands for an empty one.
    Text,
    /// A list of texts, or one text alone.
    Texts,
    /// A list of values of one shape.
    List(&'static Self),
    /// Names of the author's choice, each with a value of one shape.
    Map(&'static Self),
    /// Fields with names of their own; others are kept.
    Record(&'static [(&'static str, &'static Self)]),
}

/// Reads a document of a shape.
///
/// # Errors
/// It is not JSON, or something in it has another type than `T` wants.
pub fn read<T: DeserializeOwned>(raw: &[u8], shape: &Shape) -> Result<T, serde_json::Error> {
    let text = String::from_utf8_lossy(raw);
    let node: Node = serde_json::from_str(&text)?;
    serde_json::from_value(shape.bring(node))
}

/// A value with the members of its objects in the document's order.
#[derive(Debug)]
enum Node {
    Leaf(Value),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Node {
    const fn is_null(&self) -> bool {
        matches!(self, Self::Leaf(Value::Null))
    }
}

impl Shape {
    /// The value in the one spelling.
    fn bring(&self, node: Node) -> Value {
        match (self, node) {
            (Self::Texts, Node::Leaf(Value::String(text))) => {
                let one = (!text.is_empty()).then_some(Value::String(text));
                Value::Array(one.into_iter().collect())
            }
            (Self::Texts, Node::List(list)) => elements(list, &Self::Text),
            (Self::List(shape), Node::List(list)) => elements(list, shape),
            (Self::Map(shape), Node::Object(members)) => {
                let mut map = Map::new();
                for (name, member) in members {
                    let value = shape.bring_element(member);
                    map.insert(name, value);
                }
                Value::Object(map)
            }
            (Self::Record(fields), Node::Object(members)) => record(fields, members),
            (_, Node::Leaf(value)) => value,
            (_, Node::List(list)) => elements(list, &Self::Any),
            (_, Node::Object(members)) => {
                let members = members.into_iter();
                let members = members.map(|(name, member)| (name, Self::Any.bring(member)));
                Value::Object(members.collect())
            }
        }
    }

    /// The same for what stands in a list or a map, where `null` cannot be left out.
    fn bring_element(&self, node: Node) -> Value {
        match (self, node.is_null()) {
            (Self::Text, true) => Value::String(String::new()),
            (Self::Texts | Self::List(_), true) => Value::Array(Vec::new()),
            (Self::Map(_) | Self::Record(_), true) => Value::Object(Map::new()),
            (_, _) => self.bring(node),
        }
    }
}

fn elements(list: Vec<Node>, shape: &Shape) -> Value {
    let elements = list.into_iter().map(|node| shape.bring_element(node));
    Value::Array(elements.collect())
}

fn record(fields: &[(&'static str, &'static Shape)], members: Vec<(String, Node)>) -> Value {
    let mut known: Vec<Option<Node>> = fields.iter().map(|_| None).collect();
    let mut map = Map::new();
    for (name, member) in members {
        let exact = fields.iter().position(|(field, _)| *field == name);
        let position = exact.or_else(|| fields.iter().position(|(field, _)| same(field, &name)));
        match position {
            Some(_) if member.is_null() => {}
            Some(position) => {
                let before = known[position].take();
                known[position] = Some(merged(before, member));
            }
            None => {
                map.insert(name, Shape::Any.bring(member));
            }
        }
    }
    for ((field, shape), node) in fields.iter().zip(known) {
        if let Some(node) = node {
            map.insert((*field).to_owned(), shape.bring(node));
        }
    }
    Value::Object(map)
}

/// A field that was given again: an object adds to the one before.
fn merged(before: Option<Node>, now: Node) -> Node {
    match (before, now) {
        (Some(Node::Object(mut members)), Node::Object(more)) => {
            members.extend(more);
            Node::Object(members)
        }
        (_, now) => now,
    }
}

/// Whether Go takes two names for one field: whatever their case, and with the
/// two letters beyond ASCII whose other case is within it.
fn same(field: &str, name: &str) -> bool {
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    field.chars().map(folded).eq(name.chars().map(folded))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nodes)
    }
}

struct Nodes;

impl<'de> Visitor<'de> for Nodes {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Number(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Number(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value);
        Ok(Node::Leaf(number.map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(Value::String(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Leaf(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Node::Object(members))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const LABELS: Shape = Shape::Map(&Shape::Text);
    const RUN: Shape = Shape::Record(&[
        ("Cmd", &Shape::Texts),
        ("Env", &Shape::Texts),
        ("Labels", &LABELS),
        ("Other", &Shape::Any),
    ]);
    const DOCUMENT: Shape = Shape::Record(&[
        ("config", &RUN),
        ("history", &Shape::List(&RUN)),
        ("os", &Shape::Text),
    ]);

    fn brought(text: &str) -> Value {
        read(text.as_bytes(), &DOCUMENT).unwrap()
    }

    #[test]
    fn the_case_of_a_field_does_not_matter_and_that_of_a_label_does() {
        assert_eq!(
            brought(
                r#"{"CONFIG":{"cmd":["a"],"LABELS":{"Cmd":"1","cmd":"2"},"Vendor":{"CMD":1}},"Os":"linux"}"#
            ),
            json!({"config": {"Cmd": ["a"], "Labels": {"Cmd": "1", "cmd": "2"}, "Vendor": {"CMD": 1}}, "os": "linux"})
        );
        // The Kelvin sign and the long s.
        assert_eq!(brought("{\"o\u{17f}\":\"x\"}"), json!({"os": "x"}));
    }

    #[test]
    fn the_last_of_a_field_counts_and_objects_are_merged() {
        assert_eq!(
            brought(
                r#"{"os":"a","OS":"b","os":null,"config":{"Cmd":["a","b"],"Env":["x"]},"Config":{"cmd":["c"]},"v":1,"v":2}"#
            ),
            json!({"os": "b", "config": {"Cmd": ["c"], "Env": ["x"]}, "v": 2})
        );
    }

    #[test]
    fn null_is_absent_or_empty_wherever_it_stands() {
        assert_eq!(
            brought(
                r#"{"os":null,"config":{"Cmd":null,"Env":["A=1",null],"Labels":{"a":null},"Other":[null]},"history":[null]}"#
            ),
            json!({"config": {"Env": ["A=1", ""], "Labels": {"a": ""}, "Other": [null]}, "history": [{}]})
        );
        assert_eq!(brought(r#"{"config":null}"#), json!({}));
    }

    #[test]
    fn a_text_is_a_list_of_one() {
        assert_eq!(
            brought(r#"{"config":{"Cmd":"/bin/true","Env":""}}"#),
            json!({"config": {"Cmd": ["/bin/true"], "Env": []}})
        );
    }

    #[test]
    fn what_is_no_utf8_is_replaced_and_what_is_no_json_is_refused() {
        let value: Value = read(b"{\"os\":\"a\xffb\"}", &DOCUMENT).unwrap();
        assert_eq!(value, json!({"os": "a\u{fffd}b"}));
        for bad in ["", "{", "{}x", "[1,]", "{'a':1}"] {
            assert!(read::<Value>(bad.as_bytes(), &DOCUMENT).is_err(), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(read::<Value>(deep.as_bytes(), &DOCUMENT).is_err());
    }
}
