//! `create`: a spec in, a container that waits for `start` out.

use super::error::{Error, Result};
use super::handle::Created;
use super::options::CreateOptions;

/// Makes the container. On an error nothing of it is left: no process, cgroup or mount.
///
/// Returns when init has done all it can do before `start`: root file system, mounts, user looked up,
/// executable found, terminal open. So an unknown user, a missing program or mount source is reported here.
pub fn create(options: CreateOptions<'_>) -> Result<Created> {
    let _ = options;
    Err(Error::Unsupported {
        what: "create".into(),
        why: "not built yet".into(),
    })
}
