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
    let file = |contestant: &Contestant| directory.path().join(contestant.name());
    for _ in 0..rounds {
        for (contestant, saves) in contestants.iter().zip(&mut saves) {
            contestant.run(&["pull", "--quiet", reference])?;
            rustix::fs::sync();
            eprintln!("bench: {} saves", contestant.name());
            let path = file(contestant);
            let path = path.to_string_lossy();
            saves.push(contestant.run(&["save", "-o", &path, reference])?.took);
            contestant.run(&["rmi", reference])?;
        }
        // Some time after its own removal of the image, which may go on behind.
        for (contestant, loads) in contestants.iter().zip(&mut loads) {
            rustix::fs::sync();
            eprintln!("bench: {} loads", contestant.name());
            let path = file(contestant);
            loads.push(
                contestant
                    .run(&["load", "-i", &path.to_string_lossy()])?
                    .took,
            );
            contestant.run(&["rmi", reference])?;
            std::fs::remove_file(&path)?;
        }
    }
    table.times("save, 525 MB in 4 gzip layers", &saves);
    table.times("load of what each has saved", &loads);
    Ok(())
}
