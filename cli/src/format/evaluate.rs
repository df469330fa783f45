//! A template over a value.

use serde_json::Value;

use super::parser::{Command, Node, Pipeline, Term};
use super::show::{is_true, show};
use super::{AS_JSON, TemplateError, functions, lexer, parser};

/// Fields whose own fields are people's. As with Go's maps, one that is not there
/// is nothing, and no mistake.
const MAPS: [&str; 2] = ["Attributes", "Labels"];

/// A template that is parsed.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    text: String,
    nodes: Vec<Node>,
}

impl Template {
    /// # Errors
    /// The template's syntax is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let nodes = lexer::pieces(text)
            .and_then(parser::tree)
            .map_err(|what| TemplateError {
                template: text.to_owned(),
                what,
            })?;
        Ok(Self {
            text: text.to_owned(),
            nodes,
        })
    }

    /// # Errors
    /// The template names a field that is not there, or calls a function
    /// wrongly.
    pub(crate) fn render(&self, data: &Value) -> Result<String, TemplateError> {
        self.run(data, false)
    }

    /// The template with the names of columns for their values: what is done
    /// with a value is not done with its name.
    pub(super) fn headings(&self, names: &Value) -> Result<String, TemplateError> {
        self.run(names, true)
    }

    fn run(&self, data: &Value, headings: bool) -> Result<String, TemplateError> {
        let mut run = Run {
            root: data,
            variables: Vec::new(),
            headings,
            text: String::new(),
        };
        let flow = run.nodes(&self.nodes, data).and_then(|flow| match flow {
            Flow::On => Ok(()),
            Flow::Break | Flow::Continue => Err("{{break}} is not inside of a range".to_owned()),
        });
        flow.map_err(|what| TemplateError {
            template: self.text.clone(),
            what,
        })?;
        Ok(run.text)
    }
}

struct Run<'a> {
    root: &'a Value,
    variables: Vec<(String, Value)>,
    headings: bool,
    text: String,
}

/// How a block ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        for node in nodes {
            match self.node(node, dot)? {
                Flow::On => {}
                out => return Ok(out),
            }
        }
        Ok(Flow::On)
    }

    /// A block, whose variables end with it.
    fn block(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        let depth = self.variables.len();
        let flow = self.nodes(nodes, dot)?;
        self.variables.truncate(depth);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, String> {
        match node {
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Set(name, pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                let mut known = self.variables.iter_mut().rev();
                match known.find(|(known, _)| known == name) {
                    Some((_, old)) => *old = value,
                    None => return Err(format!("there is no variable ${name}")),
                }
            }
            Node::Text(text) => self.text.push_str(text),
            Node::Show(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.text.push_str(&show(&value));
            }
            Node::Assign(name, pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.variables.push((name.clone(), value));
            }
            Node::If {
                condition,
                then,
                otherwise,
            } => {
                let value = self.pipeline(condition, dot)?;
                return self.block(if is_true(&value) { then } else { otherwise }, dot);
            }
            Node::With {
                value,
                then,
                otherwise,
            } => {
                let value = self.pipeline(value, dot)?;
                return if is_true(&value) {
                    self.block(then, &value)
                } else {
                    self.block(otherwise, dot)
                };
            }
            Node::Range {
                variables,
                over,
                each,
                otherwise,
            } => return self.range(variables, over, each, otherwise, dot),
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        variables: &[String],
        over: &Pipeline,
        each: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Flow, String> {
        let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| (index.into(), item))
                .collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(key, value)| (key.into(), value))
                .collect(),
            Value::Null => Vec::new(),
            other => return Err(format!("range cannot go over {}", show(&other))),
        };
        if items.is_empty() {
            return self.block(otherwise, dot);
        }
        for (key, value) in items {
            let depth = self.variables.len();
            match variables {
                [] => {}
                [item] => self.variables.push((item.clone(), value.clone())),
                [index, item, ..] => {
                    self.variables.push((index.clone(), key));
                    self.variables.push((item.clone(), value.clone()));
                }
            }
            let flow = self.nodes(each, &value)?;
            self.variables.truncate(depth);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut piped = None;
        for command in pipeline {
            piped = Some(self.command(command, piped, dot)?);
        }
        Ok(piped.unwrap_or(Value::Null))
    }

    fn command(
        &self,
        command: &Command,
        piped: Option<Value>,
        dot: &Value,
    ) -> Result<Value, String> {
        if let Term::Function(name) = &command.head {
            if let "and" | "or" = name.as_str() {
                return self.junction(name == "and", &command.arguments, piped, dot);
            }
            let mut arguments = command
                .arguments
                .iter()
                .map(|term| self.term(term, dot))
                .collect::<Result<Vec<_>, _>>()?;
            arguments.extend(piped);
            // A heading goes through functions as it is.
            if self.headings && arguments.iter().any(Value::is_string) {
                let last = arguments.pop().unwrap_or(Value::Null);
                return Ok(last);
            }
            return functions::call(name, &arguments);
        }
        let value = self.term(&command.head, dot)?;
        if command.arguments.is_empty() && piped.is_none() {
            return Ok(value);
        }
        if self.headings {
            return Ok(value);
        }
        // A method with arguments, as {{.Label "key"}}: a map is asked.
        let mut value = value;
        for argument in command
            .arguments
            .iter()
            .map(|term| self.term(term, dot))
            .chain(piped.map(Ok))
        {
            let key = show(&argument?);
            value = match value {
                Value::Object(mut fields) => fields.remove(&key).unwrap_or_else(|| "".into()),
                other => return Err(format!("{} takes no argument", show(&other))),
            };
        }
        Ok(value)
    }

    /// `and` and `or` look no further than they must.
    fn junction(
        &self,
        all: bool,
        arguments: &[Term],
        piped: Option<Value>,
        dot: &Value,
    ) -> Result<Value, String> {
        let mut last = None;
        for value in arguments
            .iter()
            .map(|term| self.term(term, dot))
            .chain(piped.map(Ok))
        {
            let value = value?;
            if is_true(&value) != all {
                return Ok(value);
            }
            last = Some(value);
        }
        last.ok_or_else(|| "and, or: an argument is missing".to_owned())
    }

    fn term(&self, term: &Term, dot: &Value) -> Result<Value, String> {
        match term {
            Term::Field(names) => self.walk(dot, names),
            Term::Variable(name, fields) => {
                if name.is_empty() {
                    return self.walk(self.root, fields);
                }
                let value = self
                    .variables
                    .iter()
                    .rev()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value)
                    .ok_or_else(|| format!("there is no variable ${name}"))?;
                self.walk(value, fields)
            }
            Term::Function(name) => functions::call(name, &[]),
            Term::Text(text) => Ok(text.as_str().into()),
            Term::Number(number) => Ok(functions::number(*number)),
            Term::Bool(value) => Ok((*value).into()),
            Term::Nil => Ok(Value::Null),
            Term::Group(inside, fields) => self.walk(&self.pipeline(inside, dot)?, fields),
        }
    }

    fn walk(&self, from: &Value, names: &[String]) -> Result<Value, String> {
        let mut value = from;
        let mut of_map = false;
        for name in names {
            value = match value {
                Value::Object(fields) => match fields.get(name) {
                    Some(field) => field,
                    None if self.headings => return Ok(name.to_uppercase().into()),
                    None if of_map => return Ok(Value::Null),
                    None => {
                        return Err(format!(
                            "there is no field {name:?}; there are {}",
                            names_of(fields)
                        ));
                    }
                },
                // As Go: a field of nothing is nothing.
                Value::Null => return Ok(Value::Null),
                Value::String(heading) if self.headings => return Ok(heading.as_str().into()),
                other => return Err(format!("{} has no field {name:?}", show(other))),
            };
            of_map = MAPS.contains(&name.as_str());
        }
        Ok(value.clone())
    }
}

fn names_of(fields: &serde_json::Map<String, Value>) -> String {
    let names = fields.keys().filter(|name| *name != AS_JSON);
    names.cloned().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String, TemplateError> {
        let data = json!({
            "Name": "/web",
            "State": {"Status": "running", "Pid": 42, "Running": true, "Error": ""},
            "Args": ["-c", "x y"],
            "Labels": {"b": "2", "a": "1", "with-dash": "3"},
            "None": null,
            "Ports": {"80/tcp": [{"HostPort": "8080"}], "53/udp": null},
        });
        Template::parse(template)?.render(&data)
    }

    #[test]
    fn what_scripts_use_works() {
        for (template, expected) in [
            ("{{.State.Pid}}", "42"),
            ("{{ .State.Running }} {{.Name}}", "true /web"),
            ("{{json .State.Status}}", "\"running\""),
            ("{{.Args}}", "[-c x y]"),
            ("{{.Labels}}", "map[a:1 b:2 with-dash:3]"),
            ("{{join .Args \",\"}}", "-c,x y"),
            (
                "{{upper .State.Status}} {{.State.Status | title}}",
                "RUNNING Running",
            ),
            ("{{index .Labels \"with-dash\"}}", "3"),
            ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("{{range .Args}}<{{.}}>{{end}}", "<-c><x y>"),
            (
                "{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}",
                "a=1;b=2;with-dash=3;",
            ),
            (
                "{{range $p, $c := .Ports}}{{if $c}}{{$p}}->{{(index $c 0).HostPort}}{{end}}{{end}}",
                "80/tcp->8080",
            ),
            (
                "{{if .State.Error}}bad{{else if eq .State.Pid 42}}good{{else}}odd{{end}}",
                "good",
            ),
            (
                "{{with .State}}{{.Status}} {{$.Name}}{{end}}",
                "running /web",
            ),
            ("a {{- .Name -}} b", "a/webb"),
            ("{{/* nothing */}}x", "x"),
            ("{{printf \"%s-%d\" .Name .State.Pid}}", "/web-42"),
            ("{{len .Args}} {{not .State.Running}}", "2 false"),
            ("{{if and .State.Running (gt .State.Pid 1)}}y{{end}}", "y"),
            ("{{slice .Name 1}}", "web"),
            ("{{split .Name \"w\"}}", "[/ eb]"),
            ("{{.None}}", "<no value>"),
            ("{{println .Name}}", "/web\n"),
            ("{{$n := .Name}}{{$n}}", "/web"),
            ("{{range .None}}x{{else}}none{{end}}", "none"),
            (
                "{{$first := true}}{{range .Args}}{{if $first}}{{$first = false}}{{else}},{{end}}{{.}}{{end}}",
                "-c,x y",
            ),
            (
                "{{range $k, $v := .Labels}}{{if eq $k \"b\"}}{{break}}{{end}}{{$k}}{{end}}",
                "a",
            ),
            (
                "{{range .Args}}{{if eq . \"-c\"}}{{continue}}{{end}}{{.}}{{end}}",
                "x y",
            ),
            ("{{with .None}}x{{else with .Name}}{{.}}{{end}}", "/web"),
            (
                "{{html \"<a&b>\"}} {{urlquery \"a b/c\"}}",
                "&lt;a&amp;b&gt; a+b%2Fc",
            ),
        ] {
            assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn a_wrong_template_says_what_is_wrong() {
        for (template, part) in [
            ("{{.Nome}}", "no field \"Nome\""),
            ("{{.Name", "}} is missing"),
            ("{{if .Name}}x", "has no {{end}}"),
            ("{{end}}", "no beginning"),
            ("{{frob .Name}}", "no function \"frob\""),
            ("{{$x}}", "no variable $x"),
            ("{{$x = 1}}", "no variable $x"),
            ("{{break}}", "not inside of a range"),
            ("{{.Name.More}}", "no field \"More\""),
            ("{{(.Name}}", "does not end"),
            ("{{}}", "missing"),
        ] {
            let error = render(template).unwrap_err();
            assert!(error.what.contains(part), "{template}: {}", error.what);
        }
    }
}
