//! One command from its verb to its exit code.
//!
//! Started hundreds of times a minute by scripts: one thread, no configuration
//! file but where something in it is needed, no telemetry but where a receiver
//! is configured.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use gantry_kit::config::{Config, Engine as EngineConfig};
use gantry_kit::paths::Paths;
use gantry_kit::telemetry::{self, Telemetry};
use tracing::Instrument as _;

use crate::arguments::{Options, Request};
use crate::connection::{self, Engine};
use crate::exit::Failure;
use crate::verbs::Verb;

/// What every verb gets.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) paths: Paths,
    pub(crate) engine: Engine,
}

/// Does what is asked; the exit code, when all is said and all output is out.
pub(crate) fn run(request: Request) -> ExitCode {
    let (paths, socket) = match locate(&request.options) {
        Ok(found) => found,
        Err(failure) => return failure.report(&PathBuf::new()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return Failure::of(&error).report(&socket),
    };
    let outcome = runtime.block_on(traced(paths, socket.clone(), request.verb, &request.name));
    // A thread may wait in read(2) on a terminal for ever.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(&socket),
    }
}

fn locate(options: &Options) -> Result<(Paths, PathBuf), Failure> {
    let root = options
        .root
        .as_deref()
        .map(std::path::absolute)
        .transpose()?;
    let paths = Paths::resolve(root.as_deref()).map_err(|error| {
        let Failure::Here { message, .. } = Failure::of(&error) else {
            return Failure::of(&error);
        };
        Failure::usage(message)
    })?;
    let socket = connection::socket(options.host.as_deref(), &paths)?;
    Ok((paths, socket))
}

/// Runs `verb` inside the trace's root span, where traces are exported.
async fn traced(paths: Paths, socket: PathBuf, verb: Verb, name: &str) -> Result<u8, Failure> {
    let telemetry = if verb.is_service() {
        None
    } else {
        export(&paths)?
    };
    let session = Session {
        paths,
        engine: Engine::at(socket),
    };
    let Some(telemetry) = telemetry else {
        return verb.run(&session).await;
    };
    let span = tracing::info_span!("command", otel.name = format!("gantry {name}"));
    let outcome = verb.run(&session).instrument(span).await;
    // The exporter's own connection lives on this thread's runtime.
    let _late = tokio::task::spawn_blocking(move || telemetry.flush()).await;
    outcome
}

/// Sets export up where a receiver is configured.
fn export(paths: &Paths) -> Result<Option<Telemetry>, Failure> {
    const KEY: &str = "otlp_endpoint";
    let named = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "GANTRY_ENGINE__OTLP_ENDPOINT",
    ]
    .iter()
    .any(|variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty()));
    // Parsing is left to whoever needs it: most files do not name a receiver,
    // and a command has to work with a file that another service chokes on.
    if !named && !fs::read_to_string(&paths.config).is_ok_and(|text| text.contains(KEY)) {
        return Ok(None);
    }
    let config = Config::load(&paths.config, &[]).map_err(|error| Failure::of(&error))?;
    let mut engine: EngineConfig = config
        .table("engine")
        .map_err(|error| Failure::of(&error))?;
    if telemetry::endpoint(&engine).is_none() {
        return Ok(None);
    }
    // Standard error belongs to the container's program.
    "off".clone_into(&mut engine.log);
    telemetry::init("gantry", &engine)
        .map(Some)
        .map_err(|error| Failure::of(&error))
}
