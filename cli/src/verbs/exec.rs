//! `gantry exec`: runs one more program in a running container.

use std::path::PathBuf;

use clap::Args;
use gantry_proto::gateway::v1::{ExecOpen, ExecRequest, exec_request, exec_response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::run::DetachKeys;
use crate::exit::{Failure, NOT_EXECUTABLE};
use crate::interrupt::Interrupts;
use crate::parse::environment;
use crate::session::Session;
use crate::stream::{Control, Window, Wishes};
use crate::watch::{self, End};

/// Requests that wait for the gateway.
const QUEUE: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Set a variable: KEY=VALUE, or KEY for the caller's own
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// User, and group: NAME|ID[:GROUP]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    user: String,
    /// Working directory inside the container
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = "",
        hide_default_value = true
    )]
    workdir: String,
    /// Give it all that the engine itself has
    #[arg(long)]
    privileged: bool,
    /// Keys that leave the program's terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Container
    container: String,
    /// Program and arguments
    #[arg(required = true, value_name = "COMMAND", allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let (detach, socket) = (self.detach, session.engine.socket().to_owned());
        let of_the_process = ["UNKNOWN_USER", "WORKING_DIRECTORY"];
        self.execute(session).await.map_err(|failure| {
            let code = match () {
                // Who does not wait for the program hears of it as of any refused call.
                () if detach => 1,
                () if of_the_process.iter().any(|reason| failure.is(reason)) => NOT_EXECUTABLE,
                () => return failure,
            };
            match failure {
                Failure::Call(_) => Failure::Here {
                    code,
                    message: failure.message(&socket),
                },
                other => other,
            }
        })
    }

    async fn execute(self, session: &Session) -> Result<u8, Failure> {
        let wishes = Wishes {
            tty: self.tty,
            stdin: self.interactive && !self.detach,
            ends_input: true,
            forward_signals: true,
            detach_keys: DetachKeys::or_default(self.detach_keys),
        };
        wishes.check()?;
        let no_files: [&str; 0] = [];
        environment::variables(&no_files, &self.env)?;
        // A file is no flag's fault.
        let env = environment::variables(&self.env_file, &self.env).map_err(|e| Failure::of(&e))?;
        if !self.workdir.is_empty() && !self.workdir.starts_with('/') {
            return Err(Failure::Here {
                code: if self.detach { 1 } else { NOT_EXECUTABLE },
                message: format!("--workdir {:?} is not an absolute path", self.workdir),
            });
        }
        let container = self.container;
        let open = ExecOpen {
            container: container.clone(),
            command: self.command,
            tty: self.tty,
            stdin: wishes.stdin,
            env,
            working_dir: self.workdir,
            user: self.user,
            privileged: self.privileged,
            detach: self.detach,
            terminal_size: wishes.terminal_size(),
            primary: true,
        };
        let (requests, waiting) = mpsc::channel(QUEUE);
        let first = ExecRequest {
            message: Some(exec_request::Message::Exec(open)),
        };
        // The queue is empty and its other end is here.
        let _sent = requests.try_send(first);
        let mut client = session.engine.containers();
        // Nothing is read from the terminal for a program that never ran.
        let started = async {
            let answers = client.exec(ReceiverStream::new(waiting)).await?;
            let mut answers = answers.into_inner();
            loop {
                match answers.message().await?.and_then(|answer| answer.message) {
                    Some(exec_response::Message::Started(started)) => {
                        return Ok((answers, started.exec_id));
                    }
                    Some(_) => {}
                    None => {
                        return Err(Failure::new(
                            "the engine ended the call before the program was started",
                        ));
                    }
                }
            }
        };
        let (answers, exec_id) = Interrupts::new()?.or(started).await?;
        if self.detach {
            return Ok(0);
        }
        let window = Window::open(
            requests,
            Control::new(session, &container, &exec_id),
            wishes,
        )?;
        match watch::follow(window, answers).await? {
            End::Exited(status) => watch::code(&status),
            End::Detached => Ok(0),
        }
    }
}
