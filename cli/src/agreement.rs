//! A question before what cannot be undone.

use std::io::{self, BufRead as _};

use crate::terminal;

/// Asks on the terminal, as Docker does; what is not yes is no.
pub(crate) fn agreed(warning: &str) -> io::Result<bool> {
    terminal::print(&format!(
        "{warning}\nAre you sure you want to continue? [y/N] "
    ))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}
