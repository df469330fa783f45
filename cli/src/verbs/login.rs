//! `gantry login`: checks a user name and password against a registry.
//!
//! Credentials are verified and not kept: those that pulls and pushes use are in
//! the engine's configuration.

use std::io::{self, BufRead as _, Read as _, Write as _};

use clap::Args;
use gantry_proto::image::v1::{LoginRequest, RegistryAuth};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

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
    registry: Option<String>,
}

impl Login {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let username = match self.username {
            Some(name) => name,
            None if self.password_stdin => {
                return Err(Failure::new("--password-stdin needs --username"));
            }
            None => asked("Username: ")?,
        };
        let password = if self.password_stdin {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        } else {
            match self.password {
                Some(password) => password,
                None => asked_in_secret("Password: ")?,
            }
        };
        if username.is_empty() || password.is_empty() {
            return Err(Failure::new("a user name and a password are needed"));
        }
        let request = LoginRequest {
            registry: self.registry.unwrap_or_default(),
            auth: Some(RegistryAuth {
                username,
                password,
                identity_token: String::new(),
            }),
        };
        let answer = session.engine.images().login(request).await?.into_inner();
        let status = if answer.status.is_empty() {
            "Login Succeeded"
        } else {
            &answer.status
        };
        terminal::println(status)?;
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
