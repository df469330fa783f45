//! `gantry version`: the versions of the command and the engine.

use clap::Args;
use gantry_proto::gateway::v1::VersionRequest;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::format::{Format, Template};
use crate::session::Session;
use crate::terminal;

/// What people see.
const TEXT: &str = "Client:
 Version:       {{.Client.Version}}
 OS/Arch:       {{.Client.Os}}/{{.Client.Arch}}
{{- if .Server}}

Server:
 Version:       {{.Server.Version}}
 APIs:          {{join .Server.Apis \", \"}}
 OS/Arch:       {{.Server.Os}}/{{.Server.Arch}}
 Kernel:        {{.Server.KernelVersion}}
{{- end}}
";

#[derive(Debug, Args)]
pub(crate) struct Version {
    /// json, or a template
    #[arg(short, long)]
    format: Option<String>,
}

impl Version {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let answer = session.engine.system().version(VersionRequest {}).await;
        let (server, failure) = match answer {
            Ok(answer) => {
                let server = answer.into_inner();
                let shown = json!({
                    "Version": server.version,
                    "Apis": server.apis,
                    "Os": server.os,
                    "Arch": server.architecture,
                    "KernelVersion": server.kernel,
                });
                (shown, None)
            }
            Err(status) => (Value::Null, Some(Failure::from(status))),
        };
        let data = json!({
            "Client": {
                "Version": env!("CARGO_PKG_VERSION"),
                "Os": std::env::consts::OS,
                "Arch": architecture(),
            },
            "Server": server,
        });
        match format {
            Format::Json => terminal::println(&data.to_string())?,
            Format::Each(template) | Format::Columns(template) => {
                terminal::println(&template.render(&data.into()).map_err(|e| Failure::of(&e))?)?;
            }
            Format::Table => {
                let template = Template::parse(TEXT).map_err(|e| Failure::of(&e))?;
                terminal::print(&template.render(&data.into()).map_err(|e| Failure::of(&e))?)?;
            }
        }
        // The command's own version is known without an engine; that there is
        // none is still said.
        failure.map_or(Ok(0), Err)
    }
}

/// As Go's GOARCH.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
