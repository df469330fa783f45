//! `gantry logout`: forgets the person's credentials for a registry.

use clap::Args;
use gantry_credentials::Server;

use crate::exit::Failure;
use crate::registry_auth;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Registry: HOST[:PORT]; Docker Hub where none is named
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

impl Logout {
    pub(crate) async fn run(self, _session: &Session) -> Result<u8, Failure> {
        let server = Server::new(self.server.as_deref().unwrap_or_default());
        let mut config = registry_auth::file().map_err(|e| Failure::of(&e))?;
        let forgot = config.forget(&server).await;
        if forgot.map_err(|e| Failure::of(&e))? {
            terminal::println(&format!("Removing login credentials for {server}"))?;
        } else {
            terminal::println(&format!("Not logged in to {server}"))?;
        }
        Ok(0)
    }
}
