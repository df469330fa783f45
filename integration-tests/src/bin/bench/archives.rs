//! Save and load of the large image, each engine with its own archive.

use anyhow::Result;

use crate::contestant::Contestant;
use crate::statistics::Table;

/// The image must be in a registry under `reference`.
///
/// # Errors
/// An engine cannot save or load it.
pub(crate) fn compare(
    contestants: &[Contestant],
    reference: &str,
    rounds: usize,
    table: &mut Table,
) -> Result<()> {
    let mut saves = vec![Vec::new(); contestants.len()];
    let mut loads = saves.clone();
    let directory = tempfile::Builder::new().prefix("gt-archive-").tempdir()?;
    let file = directory.path().join("large.tar");
    let path = file.to_string_lossy();
    for _ in 0..rounds {
        for ((contestant, saves), loads) in contestants.iter().zip(&mut saves).zip(&mut loads) {
            contestant.run(&["pull", "--quiet", reference])?;
            rustix::fs::sync();
            eprintln!("bench: {} saves and loads", contestant.name());
            saves.push(contestant.run(&["save", "-o", &path, reference])?.took);
            contestant.run(&["rmi", reference])?;
            rustix::fs::sync();
            loads.push(contestant.run(&["load", "-i", &path])?.took);
            contestant.run(&["rmi", reference])?;
            std::fs::remove_file(&file)?;
        }
    }
    table.times("save, 525 MB in 4 gzip layers", &saves);
    table.times("load of what each has saved", &loads);
    Ok(())
}
