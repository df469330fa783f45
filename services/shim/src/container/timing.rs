//! How long each step of a start took.

use serde::{Deserialize, Serialize};

/// One step of `create` or `exec`. Steps of parent and child overlap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The step: "clone", "cgroup", "overlay", "mounts", "pivot", …
    pub step: String,
    /// Nanoseconds between the call and the step's beginning.
    pub start_ns: u64,
    /// Nanoseconds the step took.
    pub duration_ns: u64,
}
