//! Values as Go prints them (`%v`).

use super::data::{Data, Nil};

pub(super) fn show(value: &Data) -> String {
    match value {
        Data::Nil(Nil::Value) => "<no value>".to_owned(),
        Data::Nil(Nil::Pointer) => "<nil>".to_owned(),
        Data::Nil(Nil::List) => "[]".to_owned(),
        Data::Nil(Nil::Map) => "map[]".to_owned(),
        Data::Text(text) => text.clone(),
        Data::Bool(value) => value.to_string(),
        Data::Number(number) => number.to_string(),
        Data::List(items) => {
            let items: Vec<String> = items.iter().map(nested).collect();
            format!("[{}]", items.join(" "))
        }
        Data::Map(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{key}:{}", nested(value)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
        Data::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| nested(&field.value)).collect();
            format!("{{{}}}", fields.join(" "))
        }
    }
}

fn nested(value: &Data) -> String {
    match value {
        Data::Nil(Nil::Value) => "<nil>".to_owned(),
        other => show(other),
    }
}
