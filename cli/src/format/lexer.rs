//! A template's text as tokens.

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Action(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// `.A.B`; a lone dot has no names.
    Field(Vec<String>),
    /// `$x.A`; `$` alone has an empty name.
    Variable(String, Vec<String>),
    Name(String),
    Text(String),
    Number(f64),
    Open,
    Close,
    Pipe,
    Comma,
    /// `:=`
    Assign,
    /// `=`
    Set,
}

/// Splits `template` at its actions; `{{-` and `-}}` take blanks away.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut trim = false;
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let mut text = if trim { text.trim_start() } else { text };
        let Some(after) = after else {
            if !text.is_empty() {
                pieces.push(Piece::Text(text.to_owned()));
            }
            return Ok(pieces);
        };
        let action = match after.strip_prefix("- ") {
            Some(action) => {
                text = text.trim_end();
                action
            }
            None => after,
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        let end = action_end(action).ok_or("an action does not end: }} is missing")?;
        let inside = &action[..end];
        rest = &action[end + 2..];
        let inside = match inside.strip_suffix('-') {
            Some(inside) if inside.ends_with(char::is_whitespace) => {
                trim = true;
                inside
            }
            _ => {
                trim = false;
                inside
            }
        };
        if !inside.trim_start().starts_with("/*") {
            pieces.push(Piece::Action(tokens(inside)?));
        }
    }
}

/// Where `}}` is that is not inside a string.
fn action_end(action: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (index, character) in action.char_indices() {
        match (quote, character) {
            (Some('"'), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), close) if open == close && !escaped => quote = None,
            (None, '"' | '`') => quote = Some(character),
            (None, '}') if action[index..].starts_with("}}") => return Some(index),
            _ => {}
        }
        escaped = false;
    }
    None
}

fn tokens(action: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => {
                // `(…).Field` goes on with the parenthesis' value.
                (Token::Close, 1)
            }
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Assign, 2),
            '=' => (Token::Set, 1),
            '"' | '`' => string(rest, first)?,
            '.' => {
                let (names, length) = fields(rest);
                (Token::Field(names), length)
            }
            '$' => {
                let name = word(&rest[1..]);
                let (names, length) = fields(&rest[1 + name.len()..]);
                (
                    Token::Variable(name.to_owned(), names),
                    1 + name.len() + length,
                )
            }
            '0'..='9' | '-' | '+' => {
                let end = rest[1..]
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_')
                    .map_or(rest.len(), |end| end + 1);
                let number = rest[..end]
                    .parse()
                    .map_err(|_| format!("{:?} is not a number", &rest[..end]))?;
                (Token::Number(number), end)
            }
            _ => {
                let name = word(rest);
                if name.is_empty() {
                    return Err(format!("unexpected {first:?}"));
                }
                (Token::Name(name.to_owned()), name.len())
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// `.A.B` at the beginning of `text`, and how long it is.
fn fields(text: &str) -> (Vec<String>, usize) {
    let mut names = Vec::new();
    let mut length = 0;
    while let Some(after) = text[length..].strip_prefix('.') {
        let name = word(after);
        length += 1 + name.len();
        if name.is_empty() {
            break;
        }
        names.push(name.to_owned());
    }
    (names, length)
}

fn word(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    &text[..end]
}

fn string(text: &str, quote: char) -> Result<(Token, usize), String> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' if quote == '"' => {
                let (_, escaped) = characters.next().ok_or("a string does not end")?;
                value.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    other => other,
                });
            }
            end if end == quote => return Ok((Token::Text(value), index + 1)),
            other => value.push(other),
        }
    }
    Err("a string does not end".to_owned())
}
