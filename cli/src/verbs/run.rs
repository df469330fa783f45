//! `gantry run`: create, attach and start on one stream.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use clap::Args;
use gantry_proto::gateway::v1::run_response::Message as Answer;
use gantry_proto::gateway::v1::{
    AttachedStreams, PullPolicy, RunOpen, RunRequest, RunResponse, run_request,
};
use gantry_proto::image::v1::{InspectRequest, RegistryAuth};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::container_options::ContainerOptions;
use crate::display;
use crate::exit::{Failure, REFUSED};
use crate::interrupt::Interrupts;
use crate::parse::keys;
use crate::progress::{self, Channel, Progress};
use crate::registry_auth;
use crate::session::Session;
use crate::stream::{Control, Window, Wishes};
use crate::terminal;
use crate::watch::{self, End};

/// Requests that wait for the gateway.
const QUEUE: usize = 16;

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Run {
    #[command(flatten)]
    options: ContainerOptions,
    /// Run in the background, and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container's terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Image to run
    image: String,
    /// Program and arguments, in place of the image's
    #[arg(value_name = "COMMAND", allow_hyphen_values = true)]
    command: Vec<String>,
}

/// A newtype, since clap takes a `Vec` for many values.
#[derive(Clone, Debug)]
pub(crate) struct DetachKeys(pub(crate) Vec<u8>);

impl DetachKeys {
    pub(crate) fn parse(text: &str) -> Result<Self, crate::parse::ParseError> {
        keys::keys(text).map(Self)
    }

    pub(crate) fn or_default(keys: Option<Self>) -> Vec<u8> {
        keys.map_or_else(|| keys::DEFAULT.to_vec(), |keys| keys.0)
    }
}

impl Run {
    /// The person's credentials for a pull, if there may be one. A keychain is
    /// asked only if there will be.
    async fn auth(&self, session: &Session) -> Option<RegistryAuth> {
        let needed = match self.options.pull() {
            PullPolicy::Never => false,
            PullPolicy::Missing if registry_auth::has_helper(&self.image) => {
                let request = InspectRequest {
                    reference: self.image.clone(),
                    platform: self.options.platform(),
                };
                session.engine.images().inspect(request).await.is_err()
            }
            _ => true,
        };
        if needed {
            registry_auth::for_image(&self.image).await
        } else {
            None
        }
    }

    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        // Of these Docker says that the call was wrong, and not that it was refused.
        if self.detach && !self.options.attach.is_empty() {
            return Err(Failure::new(
                "--detach and --attach contradict each other; give one of them",
            ));
        }
        let attached = self.options.attached();
        let wishes = Wishes {
            tty: self.options.tty,
            stdin: attached.stdin && !self.detach,
            ends_input: true,
            forward_signals: self.sig_proxy,
            detach_keys: DetachKeys::or_default(self.detach_keys.clone()),
        };
        wishes.check()?;
        let socket = session.engine.socket().to_owned();
        self.start(session, wishes)
            .await
            .map_err(|failure| failure.settled(REFUSED, &socket))
    }

    async fn start(self, session: &Session, wishes: Wishes) -> Result<u8, Failure> {
        let mut config = self.options.config(&self.image, &self.command)?;
        let attached = match self.detach {
            true => AttachedStreams::default(),
            false => config.attached.unwrap_or_default(),
        };
        config.attached = Some(attached);
        let types = attached.stdin;
        config.stdin_open |= types;
        let mut cidfile = self
            .options
            .cidfile
            .as_deref()
            .map(CidFile::create)
            .transpose()?;

        let open = RunOpen {
            config: Some(config),
            name: self.options.name.clone().unwrap_or_default(),
            pull: self.options.pull().into(),
            detach: self.detach,
            attach_stdin: types,
            attach_stdout: attached.stdout,
            attach_stderr: attached.stderr,
            terminal_size: wishes.terminal_size(),
            auth: self.auth(session).await,
            primary: true,
        };
        let (requests, waiting) = mpsc::channel(QUEUE);
        let first = RunRequest {
            message: Some(run_request::Message::Run(open)),
        };
        // The queue is empty and its other end is here.
        let _sent = requests.try_send(first);
        let mut client = session.engine.containers();
        let started = async {
            let answers = client.run(ReceiverStream::new(waiting)).await?;
            let mut answers = answers.into_inner();
            let id = self.created(&mut answers, cidfile.as_mut()).await?;
            until_started(&mut answers).await?;
            Ok((answers, id))
        };
        let (answers, id) = Interrupts::new()?.or(started).await?;
        if self.detach {
            terminal::println(&id)?;
            return Ok(0);
        }
        let tty = wishes.tty && wishes.stdin;
        let window = Window::open(requests, Control::new(session, &id, ""), wishes)?;
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

    /// Shows the pull, if there is one, up to the container's id.
    async fn created(
        &self,
        answers: &mut Streaming<RunResponse>,
        cidfile: Option<&mut CidFile>,
    ) -> Result<String, Failure> {
        let mut pull: Option<Progress> = None;
        loop {
            let answer = next(answers).await?;
            match answer {
                Answer::Pull(response) => {
                    let progress = pull.get_or_insert_with(|| {
                        if self.options.pull() != PullPolicy::Always && !self.options.quiet {
                            eprintln!(
                                "Unable to find image '{}' locally",
                                progress::familiar(&self.image)
                            );
                        }
                        Progress::of_pull(&self.image, Channel::Stderr, self.options.quiet)
                    });
                    progress.pulled(response)?;
                }
                Answer::Created(created) => {
                    for warning in &created.warnings {
                        eprintln!("gantry: warning: {}", display::escaped(warning));
                    }
                    if let Some(file) = cidfile {
                        file.write(&created.container_id)?;
                    }
                    return Ok(created.container_id);
                }
                _ => {}
            }
        }
    }
}

async fn until_started(answers: &mut Streaming<RunResponse>) -> Result<(), Failure> {
    loop {
        if let Answer::Started(_) = next(answers).await? {
            return Ok(());
        }
    }
}

async fn next(answers: &mut Streaming<RunResponse>) -> Result<Answer, Failure> {
    loop {
        match answers.message().await? {
            Some(RunResponse {
                message: Some(message),
            }) => return Ok(message),
            Some(_) => {}
            None => {
                return Err(Failure::usage(
                    "the engine ended the call before the container was started",
                ));
            }
        }
    }
}

/// The file that `--cidfile` names: it must be new, and is taken away again
/// where no container comes of it.
#[derive(Debug)]
pub(crate) struct CidFile {
    path: std::path::PathBuf,
    file: File,
    written: bool,
}

impl CidFile {
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create_new(path)
            .map_err(|error| Failure::new(format!("--cidfile {path:?} cannot be made: {error}")))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            written: false,
        })
    }

    pub(crate) fn write(&mut self, id: &str) -> Result<(), Failure> {
        self.file.write_all(id.as_bytes())?;
        self.written = true;
        Ok(())
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.written {
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}
