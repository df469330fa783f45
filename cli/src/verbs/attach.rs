//! `gantry attach`: opens a window on a running container.

use clap::Args;
use gantry_proto::gateway::v1::{
    AttachOpen, AttachRequest, ContainerState, InspectRequest, attach_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::run::DetachKeys;
use crate::exit::Failure;
use crate::interrupt::Interrupts;
use crate::session::Session;
use crate::stream::{Control, Input, Window, Wishes};
use crate::terminal;
use crate::watch::{self, End, Heard};

/// Requests that wait for the gateway.
const QUEUE: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Do not type
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container's terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Container
    container: String,
}

impl Attach {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let request = InspectRequest {
            container: self.container.clone(),
            size: false,
        };
        let detail = session
            .engine
            .containers()
            .inspect(request)
            .await?
            .into_inner()
            .container
            .unwrap_or_default();
        let state = detail.summary.map(|summary| summary.state());
        match state {
            Some(ContainerState::Running) => {}
            Some(ContainerState::Paused) => {
                return Err(Failure::new(format!(
                    "container {} is paused: unpause it before attaching to it",
                    self.container
                )));
            }
            _ => {
                return Err(Failure::new(format!(
                    "container {} does not run: start it with `gantry start -a`",
                    self.container
                )));
            }
        }
        let config = detail.config.unwrap_or_default();
        let wishes = Wishes {
            tty: config.tty,
            stdin: config.stdin_open && !self.no_stdin,
            ends_input: config.attached.is_some_and(|attached| attached.stdin),
            forward_signals: self.sig_proxy,
            detach_keys: DetachKeys::or_default(self.detach_keys),
        };
        window(session, &self.container, wishes, false).await
    }
}

/// Opens a window, and starts the container where asked, until it ends.
pub(super) async fn window(
    session: &Session,
    container: &str,
    wishes: Wishes,
    start: bool,
) -> Result<u8, Failure> {
    wishes.check()?;
    let size = wishes.terminal_size();
    let mut open = AttachOpen {
        container: container.to_owned(),
        stdin: wishes.stdin,
        stdout: true,
        stderr: true,
        terminal_size: size,
        start,
        primary: start,
    };
    // A program that runs has drawn its screen already, and draws it again when
    // the size changes: so it has to.
    let redraw = size.filter(|_| !start);
    if let (Some(_), Some(other)) = (redraw, &mut open.terminal_size) {
        other.rows += 1;
    }
    let (requests, waiting) = mpsc::channel(QUEUE);
    let first = AttachRequest {
        message: Some(attach_request::Message::Open(open)),
    };
    // The queue is empty and its other end is here.
    let _sent = requests.try_send(first);
    if let Some(size) = redraw {
        let _sent = requests.try_send(Input::Resize(size).into());
    }
    let mut client = session.engine.containers();
    let opened = async {
        let answers = client.attach(ReceiverStream::new(waiting)).await?;
        let mut answers = answers.into_inner();
        let first = answers.message().await?.map(Heard::from);
        Ok((answers, first))
    };
    let (answers, first) = Interrupts::new()?.or(opened).await?;
    if let Some(Heard::Exited(status)) = first {
        return watch::code(&status);
    }
    let tty = wishes.tty && wishes.stdin;
    let window = Window::open(requests, Control::new(session, container, ""), wishes)?;
    match watch::follow(window, answers).await? {
        End::Exited(status) => watch::code(&status),
        End::Detached => {
            if tty {
                terminal::println("")?;
            }
            Ok(0)
        }
    }
}
