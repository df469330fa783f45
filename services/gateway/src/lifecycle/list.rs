//! `list`: containers, the newest first. Reads memory only.

use std::sync::Arc;

use crate::container::Record;
use crate::engine::Engine;
use crate::error::Result;
use crate::filter::{self, Filter};

/// Which containers are wanted.
#[derive(Clone, Debug, Default)]
pub struct ListWanted {
    /// Also those that do not run.
    pub all: bool,
    /// At most so many of the newest, running or not. 0: no limit.
    pub limit: usize,
    pub filters: Vec<Filter>,
}

/// Lists containers.
///
/// # Errors
/// A filter is unknown or names what is not there.
pub async fn list(engine: &Engine, wanted: &ListWanted) -> Result<Vec<Arc<Record>>> {
    let ancestors = ancestors(engine, &wanted.filters).await;
    let filters = filter::compile(&wanted.filters, &engine.roster, ancestors)?;
    // As Docker's: a limit, or a filter by state, is asked of all of them.
    let all = wanted.all
        || wanted.limit > 0
        || wanted
            .filters
            .iter()
            .any(|filter| matches!(filter.key.as_str(), "status" | "exited"));
    let fitting = engine
        .roster
        .records()
        .into_iter()
        .filter(|record| all || record.state.is_shown_running())
        .filter(|record| filters.fit(record));
    Ok(match wanted.limit {
        0 => fitting.collect(),
        limit => fitting.take(limit).collect(),
    })
}

/// Ids of the images that `ancestor` filters name. A service that does not
/// answer leaves the names, which are compared too.
async fn ancestors(engine: &Engine, filters: &[Filter]) -> Vec<String> {
    let mut ids = Vec::new();
    for filter in filters.iter().filter(|filter| filter.key == "ancestor") {
        if let Ok(Some(id)) = engine.peers.image.id_of(&filter.value).await {
            ids.push(id);
        }
    }
    ids
}
