//! `gantry completion`: a completion script for a shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// Shell: bash, zsh, fish
    shell: Shell,
}

impl Completion {
    pub(crate) async fn run(self, _session: &Session) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "gantry", &mut script);
        terminal::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
