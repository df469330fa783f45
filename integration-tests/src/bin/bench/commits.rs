//! Commit of a container that has written 200 MB.

use anyhow::Result;

use crate::contestant::Contestant;
use crate::statistics::Table;

/// # Errors
/// An engine cannot commit it.
pub(crate) fn compare(
    contestants: &[Contestant],
    image: &str,
    rounds: usize,
    table: &mut Table,
) -> Result<()> {
    let write = "for n in 1 2 3 4; do dd if=/dev/urandom of=/f$n bs=1M count=50 2>/dev/null; done";
    for contestant in contestants {
        contestant.run(&["run", "-d", "--name", "writer", image, "sleep", "3600"])?;
        contestant.run(&["exec", "writer", "sh", "-c", write])?;
    }
    let mut samples = vec![Vec::new(); contestants.len()];
    for round in 0..=rounds {
        for (contestant, samples) in contestants.iter().zip(&mut samples) {
            rustix::fs::sync();
            let took = contestant.run(&["commit", "writer", "committed"])?.took;
            // The first of each fills caches.
            if round > 0 {
                samples.push(took);
            }
            contestant.run(&["rmi", "committed"])?;
        }
    }
    for contestant in contestants {
        contestant.run(&["rm", "-f", "writer"])?;
    }
    table.times("commit of 200 MB in 4 files", &samples);
    Ok(())
}
