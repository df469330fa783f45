//! The configuration of a private engine.

use crate::audit::Marks;

/// One key: table, name and value.
pub type Setting = (&'static str, &'static str, String);

/// What an engine needs to share nothing with another.
#[must_use]
pub fn private(marks: &Marks, subnet: &str) -> Vec<Setting> {
    vec![
        ("gateway", "cgroup_parent", marks.cgroup.clone()),
        ("network", "bridge", marks.bridge.clone()),
        ("network", "subnet", subnet.to_owned()),
        ("network", "table", marks.table.clone()),
        ("registry", "listen", "127.0.0.1:0".to_owned()),
    ]
}

/// The settings as a configuration file.
#[must_use]
pub fn as_file(settings: &[Setting]) -> String {
    settings
        .iter()
        .map(|(table, key, value)| format!("{table}.{key} = {value:?}\n"))
        .collect()
}

/// The settings as environment variables, which go over any file.
#[must_use]
pub fn as_environment(settings: &[Setting]) -> Vec<(String, String)> {
    settings
        .iter()
        .map(|(table, key, value)| {
            let name = format!("GANTRY_{table}__{key}").to_ascii_uppercase();
            (name, value.clone())
        })
        .collect()
}
