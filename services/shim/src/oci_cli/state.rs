//! `state`.

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::{output, store};
use crate::container::{Container, OCI_VERSION, Status};

/// `state ID`: the specification's state, with runc's additions.
pub(super) fn state(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    if let Some(flag) = words.flag() {
        return Err(flag.unknown("state"));
    }
    let id = words.required("the container's id")?;
    words.end()?;
    let (place, container) = store::open(globals, &id)?;
    let mut state = describe(&container)?;
    let spec = place.spec()?;
    if let Some(root) = spec.root() {
        state["rootfs"] = serde_json::json!(container.record().bundle.join(root.path()));
    }
    let text = serde_json::to_string_pretty(&state).unwrap_or_default();
    output::print(&text)
}

/// What `state` and `list` say of a container.
pub(super) fn describe(container: &Container) -> Result<serde_json::Value, CliError> {
    let record = container.record();
    let status = container.status()?;
    let pid = if status == Status::Stopped {
        0
    } else {
        record.pid
    };
    let mut state = serde_json::json!({
        "ociVersion": OCI_VERSION,
        "id": record.id,
        "pid": pid,
        "status": status.to_string(),
        "bundle": record.bundle,
        "rootfs": "",
        "created": output::timestamp(record.created_unix),
        "owner": "",
    });
    if !record.annotations.is_empty() {
        state["annotations"] = serde_json::json!(record.annotations);
    }
    Ok(state)
}
