//! `check`: whether every container's record can be read, and whether the
//! services hold anything for containers that do not exist.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::Engine;
use crate::error::Result;
use crate::store::load::Damaged;
use crate::sweep::{self, Held};

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    pub object: String,
    pub problem: String,
    /// What was done about it. Empty: nothing.
    pub repaired: String,
    /// Containers that need it.
    pub needed_by: Vec<String>,
}

/// What a check came to.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub findings: Vec<Finding>,
    /// Containers that were looked at.
    pub objects: usize,
}

/// Looks at the records and at what the services hold. `repair` removes what is
/// held for containers that do not exist, unless a record cannot be read.
///
/// # Errors
/// A service does not say what it holds, or the records cannot be listed.
pub async fn check(engine: &Arc<Engine>, repair: bool) -> Result<Checked> {
    let orphans = sweep::orphans(engine).await?;
    sweep::warn_of_lost_records(engine, &orphans).await?;
    let kept = engine.kept_aside().await?;
    let mut checked = Checked {
        objects: engine.roster.entries().len(),
        findings: kept
            .iter()
            .map(|damaged| of_record(engine, damaged))
            .collect(),
    };
    let mut by_container: BTreeMap<&str, Vec<Held>> = BTreeMap::new();
    for (held, id) in &orphans {
        by_container.entry(id).or_default().push(*held);
    }
    for (id, held) in by_container {
        let names: Vec<&str> = held.iter().map(|held| held.name()).collect();
        let mut finding = Finding {
            object: format!("container {id}"),
            problem: format!("it does not exist, and has a {}", names.join(" and a ")),
            ..Finding::default()
        };
        if !kept.is_empty() {
            finding
                .problem
                .push_str("; it is kept as long as a record cannot be read");
        } else if repair {
            let mut removed = Ok(());
            for held in held {
                removed = removed.and(sweep::remove(engine, held, id).await);
            }
            match removed {
                Ok(()) => finding.repaired = "removed".to_owned(),
                Err(error) => finding.problem = format!("{}: {error}", finding.problem),
            }
        }
        checked.findings.push(finding);
    }
    Ok(checked)
}

fn of_record(engine: &Engine, damaged: &Damaged) -> Finding {
    let path = damaged.path.display();
    let id = damaged.id.as_ref().map(ToString::to_string);
    let exists = |id: &String| engine.roster.get(id).is_some();
    let what_to_do = match &id {
        Some(id) if exists(id) => {
            "what it owns is kept. Repair it there and restart the gateway, or remove the container"
        }
        _ => {
            "nothing is removed for want of a record while it is there. Read it, then move it elsewhere or remove it"
        }
    };
    Finding {
        object: match &id {
            Some(id) => format!("the record of container {id}"),
            None => "a file among the containers' records".to_owned(),
        },
        problem: format!("it cannot be read and was set aside: {path}; {what_to_do}"),
        needed_by: id.into_iter().filter(exists).collect(),
        ..Finding::default()
    }
}
