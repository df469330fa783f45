//! A template over a value.

use super::data::{Data, Field, Nil};
use super::parser::{Command, Node, Pipeline, Term};
use super::show::show;
use super::{TemplateError, functions, lexer, parser};

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
    pub(crate) fn render(&self, data: &Data) -> Result<String, TemplateError> {
        self.run(data, false)
    }

    /// The template with the names of columns for their values: what is done
    /// with a value is not done with its name.
    pub(super) fn headings(&self, names: &Data) -> Result<String, TemplateError> {
        self.run(names, true)
    }

    fn run(&self, data: &Data, headings: bool) -> Result<String, TemplateError> {
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
    root: &'a Data,
    variables: Vec<(String, Data)>,
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
    fn nodes(&mut self, nodes: &[Node], dot: &Data) -> Result<Flow, String> {
        for node in nodes {
            match self.node(node, dot)? {
                Flow::On => {}
                out => return Ok(out),
            }
        }
        Ok(Flow::On)
    }

    /// A block, whose variables end with it.
    fn block(&mut self, nodes: &[Node], dot: &Data) -> Result<Flow, String> {
        let depth = self.variables.len();
        let flow = self.nodes(nodes, dot)?;
        self.variables.truncate(depth);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Data) -> Result<Flow, String> {
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
                return self.block(if value.is_true() { then } else { otherwise }, dot);
            }
            Node::With {
                value,
                then,
                otherwise,
            } => {
                let value = self.pipeline(value, dot)?;
                return if value.is_true() {
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
        dot: &Data,
    ) -> Result<Flow, String> {
        let items: Vec<(Data, Data)> = match self.pipeline(over, dot)? {
            Data::List(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| (index.into(), item))
                .collect(),
            Data::Map(entries) => entries
                .into_iter()
                .map(|(key, value)| (key.into(), value))
                .collect(),
            Data::Nil(_) => Vec::new(),
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

    fn pipeline(&self, pipeline: &Pipeline, dot: &Data) -> Result<Data, String> {
        let mut piped = None;
        for command in pipeline {
            piped = Some(self.command(command, piped, dot)?);
        }
        Ok(piped.unwrap_or(Data::Nil(Nil::Value)))
    }

    fn command(&self, command: &Command, piped: Option<Data>, dot: &Data) -> Result<Data, String> {
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
            if self.headings && arguments.iter().any(|data| matches!(data, Data::Text(_))) {
                let last = arguments.pop().unwrap_or(Data::Nil(Nil::Value));
                return Ok(last);
            }
            return functions::call(name, &arguments);
        }
        let value = self.term(&command.head, dot)?;
        if command.arguments.is_empty() && piped.is_none() {
            return Ok(value);
        }
        if self.headings {
            // Of a label's column its name: the last part of it, with blanks.
            let name = command.arguments.first();
            let name = name.map(|term| self.term(term, dot)).transpose()?;
            return Ok(match name {
                Some(Data::Text(name)) => {
                    let last = name.rsplit('.').next().unwrap_or_default();
                    last.replace(['-', '_'], " ").into()
                }
                _ => value,
            });
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
                Data::Map(mut entries) => entries.remove(&key).unwrap_or_else(|| "".into()),
                // A row's labels: what is not there is empty.
                Data::Struct(fields) => fields
                    .into_iter()
                    .find(|field| field.name == key.as_str())
                    .map_or_else(|| "".into(), |field| field.value),
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
        piped: Option<Data>,
        dot: &Data,
    ) -> Result<Data, String> {
        let mut last = None;
        for value in arguments
            .iter()
            .map(|term| self.term(term, dot))
            .chain(piped.map(Ok))
        {
            let value = value?;
            if value.is_true() != all {
                return Ok(value);
            }
            last = Some(value);
        }
        last.ok_or_else(|| "and, or: an argument is missing".to_owned())
    }

    fn term(&self, term: &Term, dot: &Data) -> Result<Data, String> {
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
            Term::Nil => Ok(Data::Nil(Nil::Value)),
            Term::Group(inside, fields) => self.walk(&self.pipeline(inside, dot)?, fields),
        }
    }

    fn walk(&self, from: &Data, names: &[String]) -> Result<Data, String> {
        let mut data = from.clone();
        for name in names {
            data = match data {
                Data::Struct(fields) => {
                    let place = fields.iter().position(|field| field.name == name.as_str());
                    match place {
                        Some(place) => fields.into_iter().nth(place).map(|field| field.value),
                        None if self.headings => return Ok(name.to_uppercase().into()),
                        None => {
                            return Err(format!(
                                "there is no field {name:?}; there are {}",
                                names_of(&fields)
                            ));
                        }
                    }
                    .unwrap_or(Data::Nil(Nil::Value))
                }
                Data::Map(mut entries) => entries.remove(name).unwrap_or(Data::Nil(Nil::Value)),
                Data::Nil(Nil::Map) => Data::Nil(Nil::Value),
                Data::Nil(_) => return Err(format!("there is nothing that has a field {name:?}")),
                Data::Text(heading) if self.headings => return Ok(heading.into()),
                other => return Err(format!("{} has no field {name:?}", show(&other))),
            };
        }
        Ok(data)
    }
}

fn names_of(fields: &[Field]) -> String {
    let names: Vec<&str> = fields.iter().map(|field| &*field.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String, TemplateError> {
        let labels = [("b", "2"), ("a", "1"), ("with-dash", "3")];
        let ports = [
            (
                "80/tcp".to_owned(),
                Data::from(json!([{"HostPort": "8080"}])),
            ),
            ("53/udp".to_owned(), Data::Nil(Nil::List)),
        ];
        let data = Data::fields([
            ("Name", "/web".into()),
            (
                "State",
                json!({"Status": "running", "Pid": 42, "Running": true, "Error": ""}).into(),
            ),
            ("Args", json!(["-c", "x y"]).into()),
            (
                "Labels",
                Data::map(labels.map(|(key, value)| (key.to_owned(), value))),
            ),
            ("None", json!(null).into()),
            ("Health", Data::POINTER),
            ("Volumes", Data::Nil(Nil::Map)),
            ("Entrypoint", Data::Nil(Nil::List)),
            ("Ports", Data::map(ports)),
        ]);
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
            ("{{printf \"%.2s|%5.3s|\" .Name .Name}}", "/w|  /we|"),
            ("{{len .Args}} {{not .State.Running}}", "2 false"),
            ("{{if and .State.Running (gt .State.Pid 1)}}y{{end}}", "y"),
            ("{{slice .Name 1}}", "web"),
            ("{{split .Name \"w\"}}", "[/ eb]"),
            ("{{.None}} {{.Labels.none}}", "<no value> <no value>"),
            (
                "{{.Health}} {{.Volumes}} {{.Entrypoint}} {{.Volumes.x}}",
                "<nil> map[] [] <no value>",
            ),
            (
                "{{if .Health}}y{{else}}n{{end}}{{with .State}}y{{end}}",
                "ny",
            ),
            ("{{len .Volumes}}{{range .Entrypoint}}x{{end}}", "0"),
            ("{{index .Labels \"none\"}}{{index .Volumes \"x\"}}", ""),
            ("{{json .Health}} {{json .Entrypoint}}", "null null"),
            ("{{.State}}", "{ 42 true running}"),
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
            ("{{.State.Nome}}", "no field \"Nome\""),
            ("{{.Health.Status}}", "nothing that has a field \"Status\""),
            ("{{.Labels.none.more}}", "nothing that has"),
            ("{{len .Health}}", "no length"),
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
