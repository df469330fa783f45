//! The functions of templates: Go's own and Docker's.

use std::cmp::Ordering;

use super::data::{Data, Nil};
use super::show::show;

/// Calls `name`; what was piped is the last argument.
pub(super) fn call(name: &str, arguments: &[Data]) -> Result<Data, String> {
    let count = |wanted: usize| {
        if arguments.len() == wanted {
            Ok(())
        } else {
            Err(format!(
                "{name} takes {wanted} arguments and has {}",
                arguments.len()
            ))
        }
    };
    let text = |index: usize| arguments.get(index).map(show).unwrap_or_default();
    match name {
        "json" => {
            count(1)?;
            Ok(arguments[0].json().into())
        }
        "lower" => count(1).map(|()| text(0).to_lowercase().into()),
        "upper" => count(1).map(|()| text(0).to_uppercase().into()),
        "title" => count(1).map(|()| title(&text(0)).into()),
        "join" => {
            count(2)?;
            // Docker's `join LIST SEPARATOR`; piped, the list comes last.
            let (list, separator) = match (&arguments[0], &arguments[1]) {
                (Data::List(list), separator) | (separator, Data::List(list)) => {
                    (list.as_slice(), separator)
                }
                (Data::Nil(Nil::List), separator) | (separator, Data::Nil(Nil::List)) => {
                    (&[][..], separator)
                }
                (other, _) => return Err(format!("join takes a list, not {}", show(other))),
            };
            let items: Vec<String> = list.iter().map(show).collect();
            Ok(items.join(&show(separator)).into())
        }
        "split" => {
            count(2)?;
            let separator = text(1);
            Ok(Data::list(text(0).split(&separator)))
        }
        "replace" => count(3).map(|()| text(0).replace(&text(1), &text(2)).into()),
        "html" => count(1).map(|()| html(&text(0)).into()),
        "urlquery" => count(1).map(|()| query(&text(0)).into()),
        "print" => Ok(arguments.iter().map(show).collect::<String>().into()),
        "println" => {
            let words: Vec<String> = arguments.iter().map(show).collect();
            Ok(format!("{}\n", words.join(" ")).into())
        }
        "printf" => printf(&text(0), arguments.get(1..).unwrap_or_default()).map(Data::from),
        "len" => {
            count(1)?;
            match &arguments[0] {
                Data::Text(text) => Ok(text.len().into()),
                Data::List(items) => Ok(items.len().into()),
                Data::Map(entries) => Ok(entries.len().into()),
                Data::Nil(Nil::List | Nil::Map) => Ok(0.into()),
                other => Err(format!("{} has no length", show(other))),
            }
        }
        "index" => index(arguments),
        "slice" => slice(arguments),
        "truncate" => {
            count(2)?;
            let width = arguments[1].as_u64().unwrap_or(0) as usize;
            Ok(text(0).chars().take(width).collect::<String>().into())
        }
        "pad" => {
            count(3)?;
            let blanks = |index: usize| " ".repeat(arguments[index].as_u64().unwrap_or(0) as usize);
            Ok(format!("{}{}{}", blanks(1), text(0), blanks(2)).into())
        }
        "not" => count(1).map(|()| (!arguments[0].is_true()).into()),
        "eq" => match arguments {
            [first, rest @ ..] if !rest.is_empty() => {
                Ok(rest.iter().any(|other| same(first, other)).into())
            }
            _ => Err("eq takes two arguments or more".to_owned()),
        },
        "ne" => count(2).map(|()| (!same(&arguments[0], &arguments[1])).into()),
        "lt" | "le" | "gt" | "ge" => {
            count(2)?;
            let order = compare(&arguments[0], &arguments[1])?;
            Ok(match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into())
        }
        _ => Err(format!("there is no function {name:?}")),
    }
}

/// A number without a fraction is an integer.
pub(super) fn number(number: f64) -> Data {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        (number as i64).into()
    } else {
        number.into()
    }
}

fn same(one: &Data, other: &Data) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ if matches!((one, other), (Data::Nil(_), Data::Nil(_))) => true,
        _ => one == other,
    }
}

fn compare(one: &Data, other: &Data) -> Result<Ordering, String> {
    match (one, other) {
        (Data::Number(one), Data::Number(other)) => one
            .as_f64()
            .partial_cmp(&other.as_f64())
            .ok_or_else(|| "numbers that have no order".to_owned()),
        (Data::Text(one), Data::Text(other)) => Ok(one.cmp(other)),
        _ => Err(format!("{} and {} have no order", show(one), show(other))),
    }
}

/// What has a meaning in HTML, in words.
fn html(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '&' => shown.push_str("&amp;"),
            '\'' => shown.push_str("&#39;"),
            '"' => shown.push_str("&#34;"),
            other => shown.push(other),
        }
    }
    shown
}

/// As a part of a URL's query.
fn query(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => shown.push('+'),
            byte if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => {
                shown.push(char::from(byte));
            }
            byte => shown.push_str(&format!("%{byte:02X}")),
        }
    }
    shown
}

fn title(text: &str) -> String {
    let mut beginning = true;
    text.chars()
        .flat_map(|character| {
            let shown: Vec<char> = if beginning {
                character.to_uppercase().collect()
            } else {
                vec![character]
            };
            beginning = character.is_whitespace();
            shown
        })
        .collect()
}

/// `index VALUE KEY…`; what is not there is nothing.
fn index(arguments: &[Data]) -> Result<Data, String> {
    let (first, keys) = arguments
        .split_first()
        .ok_or_else(|| "index takes a list or a map, and keys".to_owned())?;
    let mut value = first.clone();
    for key in keys {
        value = match value {
            Data::List(mut items) => {
                let position = key
                    .as_u64()
                    .ok_or_else(|| format!("{} is not a position in a list", show(key)))?
                    as usize;
                if position >= items.len() {
                    return Err(format!(
                        "position {position} is outside of a list of {}",
                        items.len()
                    ));
                }
                items.swap_remove(position)
            }
            Data::Map(mut entries) => entries.remove(&show(key)).unwrap_or_else(|| "".into()),
            Data::Nil(Nil::Map) => "".into(),
            other => return Err(format!("{} is neither a list nor a map", show(&other))),
        };
    }
    Ok(value)
}

/// `slice VALUE [FROM [TO]]`
fn slice(arguments: &[Data]) -> Result<Data, String> {
    let bound = |index: usize, otherwise: usize| match arguments.get(index) {
        None => Ok(otherwise),
        Some(value) => value
            .as_u64()
            .map(|bound| bound as usize)
            .ok_or_else(|| format!("{} is not a position", show(value))),
    };
    let outside = || "slice: a position is outside of the value".to_owned();
    match arguments.first() {
        Some(Data::Text(text)) => {
            let (from, to) = (bound(1, 0)?, bound(2, text.len())?);
            text.get(from..to).map(Data::from).ok_or_else(outside)
        }
        Some(Data::List(items)) => {
            let (from, to) = (bound(1, 0)?, bound(2, items.len())?);
            items
                .get(from..to)
                .map(|items| Data::List(items.to_vec()))
                .ok_or_else(outside)
        }
        _ => Err("slice takes a text or a list".to_owned()),
    }
}

/// %s %v %d %q %x %t %f and %%, with a width.
fn printf(format: &str, arguments: &[Data]) -> Result<String, String> {
    let mut text = String::new();
    let mut arguments = arguments.iter();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut flags = String::new();
        let verb = loop {
            match characters.next() {
                Some(flag) if flag.is_ascii_digit() || "-+.".contains(flag) => flags.push(flag),
                Some(verb) => break verb,
                None => return Err("printf: the format ends after %".to_owned()),
            }
        };
        if verb == '%' {
            text.push('%');
            continue;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("printf: %{verb} has no argument"))?;
        let (width, precision) = flags.split_once('.').unwrap_or((&flags, ""));
        let shown = match verb {
            's' if flags.contains('.') => {
                let most = precision.parse().unwrap_or(0);
                show(value).chars().take(most).collect()
            }
            's' | 'v' | 'd' | 't' => show(value),
            'q' => Data::from(show(value)).json(),
            'x' => value
                .as_u64()
                .map_or_else(|| show(value), |n| format!("{n:x}")),
            'f' => {
                let places = precision.parse().unwrap_or(6);
                format!("{:.places$}", value.as_f64().unwrap_or_default())
            }
            other => return Err(format!("printf: %{other} is not known")),
        };
        let left = width.starts_with('-');
        let blanks = width
            .trim_start_matches(['-', '+'])
            .parse::<usize>()
            .unwrap_or(0)
            .saturating_sub(shown.chars().count());
        if left {
            text.push_str(&shown);
        }
        text.extend(std::iter::repeat_n(' ', blanks));
        if !left {
            text.push_str(&shown);
        }
    }
    Ok(text)
}
