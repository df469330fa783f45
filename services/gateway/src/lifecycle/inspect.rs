//! `inspect`: everything known of one container. Reads memory only.

use std::sync::Arc;

use super::start;
use crate::container::Record;
use crate::engine::Engine;
use crate::error::Result;
use crate::spec::{self, Namespaces};

/// A container in detail.
#[derive(Debug)]
pub struct Detail {
    pub record: Arc<Record>,
    /// The OCI runtime specification of its present or next start. Empty where
    /// that could not be started.
    pub spec: Vec<u8>,
    /// Directory of its log.
    pub log_path: String,
    /// The processes of `exec` that run.
    pub exec_ids: Vec<String>,
}

/// Looks at a container.
///
/// # Errors
/// There is none of this name.
pub fn inspect(engine: &Engine, query: &str) -> Result<Detail> {
    let entry = engine.roster.find(query)?;
    let record = entry.record();
    let namespaces = start::namespaces(engine, &record, record.endpoint.as_ref());
    let spec = spec::build(
        &record,
        &namespaces.unwrap_or_else(|_| Namespaces::default()),
        &engine.host,
    );
    Ok(Detail {
        spec: spec
            .map(|spec| spec.to_string().into_bytes())
            .unwrap_or_default(),
        log_path: engine
            .paths
            .container_log(record.id.as_str())
            .display()
            .to_string(),
        exec_ids: entry.execs(),
        record,
    })
}
