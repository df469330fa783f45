//! The configuration of a private engine.

use crate::audit::Marks;

/// `gantry.toml` of an engine that shares nothing with another.
#[must_use]
pub fn private(marks: &Marks, subnet: &str) -> String {
    format!(
        "[network]\nbridge = \"{}\"\nsubnet = \"{subnet}\"\ntable = \"{}\"\n\n[runtime]\ncgroup_parent = \"{}\"\n\n[registry]\nlisten = \"127.0.0.1:0\"\n",
        marks.bridge, marks.table, marks.cgroup
    )
}
