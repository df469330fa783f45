//! Tokens as a tree.

use super::lexer::{Piece, Token};

#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    /// What a pipeline comes to, written out.
    Show(Pipeline),
    /// `{{$x := …}}`
    Assign(String, Pipeline),
    /// `{{$x = …}}`
    Set(String, Pipeline),
    /// Out of the innermost range.
    Break,
    /// On with the next of the innermost range.
    Continue,
    If {
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        /// `$key, $value`, or `$value`, or none.
        variables: Vec<String>,
        over: Pipeline,
        each: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands, the result of each the last argument of the next.
pub(super) type Pipeline = Vec<Command>;

/// A function or a value, with its arguments.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) head: Term,
    pub(super) arguments: Vec<Term>,
}

#[derive(Clone, Debug)]
pub(super) enum Term {
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Text(String),
    Number(f64),
    Bool(bool),
    Nil,
    /// `(pipeline).A.B`
    Group(Pipeline, Vec<String>),
}

/// The tree of a whole template.
pub(super) fn tree(pieces: Vec<Piece>) -> Result<Vec<Node>, String> {
    let mut parser = Parser {
        pieces: pieces.into_iter(),
    };
    let (nodes, end) = parser.block()?;
    match end {
        None => Ok(nodes),
        Some(end) => Err(format!("{{{{{}}}}} has no beginning", end.name)),
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
}

/// What ended a block: `end`, or `else` with the rest of its action.
struct End {
    name: String,
    rest: Vec<Token>,
}

impl Parser {
    /// Nodes up to `end`, `else` or the template's end.
    fn block(&mut self) -> Result<(Vec<Node>, Option<End>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            let keyword = match tokens.first() {
                Some(Token::Name(name)) => name.clone(),
                _ => String::new(),
            };
            match keyword.as_str() {
                "end" | "else" => {
                    let end = End {
                        name: keyword,
                        rest: tokens[1..].to_vec(),
                    };
                    return Ok((nodes, Some(end)));
                }
                "if" | "with" | "range" => nodes.push(self.control(&keyword, &tokens[1..])?),
                _ => nodes.push(simple(&tokens)?),
            }
        }
        Ok((nodes, None))
    }

    fn control(&mut self, keyword: &str, tokens: &[Token]) -> Result<Node, String> {
        let (variables, tokens) = match keyword {
            "range" => range_variables(tokens)?,
            _ => (Vec::new(), tokens),
        };
        let subject = pipeline(tokens)?;
        let (then, end) = self.block()?;
        let end = end.ok_or_else(|| format!("{{{{{keyword}}}}} has no {{{{end}}}}"))?;
        let otherwise = if end.name == "end" {
            Vec::new()
        } else if let Some(Token::Name(next)) = end.rest.first() {
            vec![self.control(next, &end.rest[1..])?]
        } else {
            let (otherwise, end) = self.block()?;
            match end {
                Some(end) if end.name == "end" => otherwise,
                _ => return Err(format!("{{{{{keyword}}}}} has no {{{{end}}}}")),
            }
        };
        Ok(match keyword {
            "if" => Node::If {
                condition: subject,
                then,
                otherwise,
            },
            "with" => Node::With {
                value: subject,
                then,
                otherwise,
            },
            _ => Node::Range {
                variables,
                over: subject,
                each: then,
                otherwise,
            },
        })
    }
}

/// `$k, $v :=` before what `range` goes over.
fn range_variables(tokens: &[Token]) -> Result<(Vec<String>, &[Token]), String> {
    let Some(assign) = tokens.iter().position(|token| *token == Token::Assign) else {
        return Ok((Vec::new(), tokens));
    };
    let mut variables = Vec::new();
    for token in &tokens[..assign] {
        match token {
            Token::Variable(name, fields) if fields.is_empty() => variables.push(name.clone()),
            Token::Comma => {}
            _ => return Err("range assigns to variables only".to_owned()),
        }
    }
    Ok((variables, &tokens[assign + 1..]))
}

fn simple(tokens: &[Token]) -> Result<Node, String> {
    match tokens {
        [Token::Variable(name, fields), Token::Assign, rest @ ..] if fields.is_empty() => {
            Ok(Node::Assign(name.clone(), pipeline(rest)?))
        }
        [Token::Variable(name, fields), Token::Set, rest @ ..] if fields.is_empty() => {
            Ok(Node::Set(name.clone(), pipeline(rest)?))
        }
        [Token::Name(name)] if name == "break" => Ok(Node::Break),
        [Token::Name(name)] if name == "continue" => Ok(Node::Continue),
        _ => Ok(Node::Show(pipeline(tokens)?)),
    }
}

fn pipeline(tokens: &[Token]) -> Result<Pipeline, String> {
    let mut depth = 0usize;
    let mut commands = Vec::new();
    let mut start = 0;
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Open => depth += 1,
            Token::Close => {
                depth = depth
                    .checked_sub(1)
                    .ok_or("a parenthesis has no beginning")?;
            }
            Token::Pipe if depth == 0 => {
                commands.push(command(&tokens[start..index])?);
                start = index + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err("a parenthesis does not end".to_owned());
    }
    commands.push(command(&tokens[start..])?);
    Ok(commands)
}

fn command(tokens: &[Token]) -> Result<Command, String> {
    let mut terms = Vec::new();
    let mut rest = tokens;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        terms.push(match first {
            Token::Field(names) => Term::Field(names.clone()),
            Token::Variable(name, fields) => Term::Variable(name.clone(), fields.clone()),
            Token::Name(name) => match name.as_str() {
                "true" => Term::Bool(true),
                "false" => Term::Bool(false),
                "nil" => Term::Nil,
                _ => Term::Function(name.clone()),
            },
            Token::Text(text) => Term::Text(text.clone()),
            Token::Number(number) => Term::Number(*number),
            Token::Open => {
                let end = closing(rest).ok_or("a parenthesis does not end")?;
                let inside = pipeline(&rest[..end])?;
                rest = &rest[end + 1..];
                let fields = match rest.first() {
                    Some(Token::Field(names)) if !names.is_empty() => {
                        rest = &rest[1..];
                        names.clone()
                    }
                    _ => Vec::new(),
                };
                Term::Group(inside, fields)
            }
            Token::Close | Token::Pipe | Token::Comma | Token::Assign | Token::Set => {
                return Err("a value is missing".to_owned());
            }
        });
    }
    let mut terms = terms.into_iter();
    let head = terms.next().ok_or("a value is missing")?;
    Ok(Command {
        head,
        arguments: terms.collect(),
    })
}

/// Where the parenthesis ends that is already open.
fn closing(tokens: &[Token]) -> Option<usize> {
    let mut depth = 1usize;
    tokens.iter().position(|token| {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}
