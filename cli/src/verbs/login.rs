//! `gantry login`: checks a user name and password with a registry, and keeps
//! them for the person, where Docker does.

use std::io::{self, BufRead as _, Read as _, Write as _};

use clap::Args;
use gantry_credentials::{Credentials, DockerConfig, Kept, Server};
use gantry_proto::image::v1::LoginRequest;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::display;
use crate::exit::Failure;
use crate::registry_auth;
use crate::session::Session;
use crate::terminal;

/// The longest password that is read from standard input, in bytes.
const PASSWORD_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// User name
    #[arg(short, long)]
    username: Option<String>,
    /// Password; others on this machine can see it
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Registry: HOST[:PORT]; Docker Hub where none is named
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

impl Login {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let server = Server::new(self.server.as_deref().unwrap_or_default());
        // A file that cannot be changed is said so before a password is asked for.
        let mut config = registry_auth::file().map_err(|e| Failure::of(&e))?;
        if self.username.is_none() && self.password.is_none() && !self.password_stdin {
            match config.find(&server).await {
                Ok(Some(known)) => {
                    let whose = match known.username() {
                        "" => String::new(),
                        name => format!(" [Username: {name}]"),
                    };
                    terminal::println(&format!(
                        "Authenticating with existing credentials...{whose}"
                    ))?;
                    match self.log_in(session, &server, &mut config, known).await {
                        Ok(code) => return Ok(code),
                        Err(failure) if terminal::stdin_is_terminal() => {
                            eprintln!("Login did not succeed:");
                            failure.say(session.engine.socket());
                        }
                        Err(failure) => return Err(failure),
                    }
                }
                Ok(None) => {}
                Err(error) => return Err(Failure::of(&error)),
            }
        }
        let credentials = self.ask()?;
        self.log_in(session, &server, &mut config, credentials)
            .await
    }

    /// The credentials that were given, or that the person types.
    fn ask(&self) -> Result<Credentials, Failure> {
        let username = match &self.username {
            Some(name) => name.clone(),
            None if self.password_stdin => {
                return Err(Failure::new("--password-stdin needs --username"));
            }
            None => asked("Username: ")?,
        };
        let password = if self.password_stdin {
            let mut text = String::new();
            io::stdin().take(PASSWORD_MAX).read_to_string(&mut text)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        } else if let Some(password) = &self.password {
            eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            password.clone()
        } else {
            asked_in_secret("Password: ")?
        };
        if username.is_empty() || password.is_empty() {
            return Err(Failure::new("a user name and a password are needed"));
        }
        Ok(Credentials::Password { username, password })
    }

    async fn log_in(
        &self,
        session: &Session,
        server: &Server,
        config: &mut DockerConfig,
        credentials: Credentials,
    ) -> Result<u8, Failure> {
        let registry = if server.is_hub() { "" } else { server.host() };
        let request = LoginRequest {
            registry: registry.to_owned(),
            auth: Some(registry_auth::wire(credentials.clone())),
        };
        let answer = session.engine.images().login(request).await?.into_inner();
        let credentials = match answer.identity_token {
            token if token.is_empty() => credentials,
            token => Credentials::Identity {
                username: credentials.username().to_owned(),
                token,
            },
        };
        let kept = config.keep(server, &credentials).await;
        if kept.map_err(|e| Failure::of(&e))? == Kept::File {
            eprintln!(
                "WARNING! Your credentials are stored unencrypted in '{}'.",
                config.path().display()
            );
            eprintln!("Configure a credential helper to remove this warning.");
        }
        let status = if answer.status.is_empty() {
            "Login Succeeded"
        } else {
            &answer.status
        };
        terminal::println(&display::escaped(status))?;
        Ok(0)
    }
}

fn asked(question: &str) -> Result<String, Failure> {
    if !terminal::stdin_is_terminal() {
        return Err(Failure::new(
            "standard input is no terminal to ask at; use --username and --password-stdin",
        ));
    }
    eprint!("{question}");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Asks without showing what is typed.
fn asked_in_secret(question: &str) -> Result<String, Failure> {
    if !terminal::stdin_is_terminal() {
        return asked(question);
    }
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(io::Error::from)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &silent).map_err(io::Error::from)?;
    let answer = asked(question);
    let restored = tcsetattr(&stdin, OptionalActions::Now, &before).map_err(io::Error::from);
    eprintln!();
    let answer = answer?;
    restored?;
    Ok(answer)
}
