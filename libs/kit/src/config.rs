//! One TOML file with a table per service; every key has a default.
//!
//! A value comes from the last of these that names it:
//! 1. the default in the service's configuration type,
//! 2. the file (`/etc/gantry/gantry.toml`, or `gantry.toml` below `--root`),
//! 3. the environment: `GANTRY_<TABLE>__<KEY>` (`GANTRY_NETWORK__BRIDGE=br9`;
//!    a deeper key after another pair of underscores),
//! 4. a flag: `--set table.key=value`.
//!
//! Values from 3 and 4 are read as TOML where they parse as such, and as a
//! string otherwise. A key that no service knows is an error that names it.
//!
//! The table `[engine]` ([`Engine`]) holds for every service.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

const ENV_PREFIX: &str = "GANTRY_";

/// What every service and the CLI share.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// What is logged: a level ("info") or a filter in the syntax of
    /// `tracing_subscriber::EnvFilter` ("info,gantry_image=debug").
    pub log: String,
    /// "text" or "json", a line per event, on standard error.
    pub log_format: LogFormat,
    /// OTLP receiver for traces and metrics, "http://127.0.0.1:4317" (gRPC).
    /// Empty: `OTEL_EXPORTER_OTLP_ENDPOINT`; where that is unset too, nothing
    /// is exported.
    pub otlp_endpoint: String,
    /// Group that may use the sockets, beside root. A group that does not exist
    /// is passed over: then only root may.
    pub socket_group: String,
    /// Seconds that calls under way have to end in when a service stops.
    pub drain_seconds: u64,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: String::new(),
            socket_group: "gantry".to_owned(),
            drain_seconds: 5,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration file {path:?} is not valid TOML")]
    Syntax {
        path: PathBuf,
        source: toml::de::Error,
    },
    #[error("table [{table}] of the configuration has a wrong key or value")]
    Table {
        table: String,
        source: toml::de::Error,
    },
    #[error("{origin}: [{table}] is a single value in the configuration, not a table")]
    NotATable { origin: String, table: String },
    #[error("--set {0:?} is not of the form table.key=value")]
    Assignment(String),
}

/// All tables, merged from every source.
#[derive(Clone, Debug, Default)]
pub struct Config {
    tables: Table,
}

impl Config {
    /// Reads the file at `path` (which need not exist), then the environment,
    /// then `assignments` of the form `table.key=value`.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or an assignment is malformed.
    pub fn load(path: &Path, assignments: &[String]) -> Result<Self, ConfigError> {
        let environment = env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        Self::merge(path, environment, assignments)
    }

    fn merge(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
        assignments: &[String],
    ) -> Result<Self, ConfigError> {
        let mut tables = match fs::read_to_string(path) {
            Ok(text) => text.parse().map_err(|source| ConfigError::Syntax {
                path: path.to_owned(),
                source,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Table::new(),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        for (variable, value) in environment {
            let Some(rest) = variable.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            // One underscore belongs to a name; two part names. A variable
            // without two is somebody else's (GANTRY_ROOT, say).
            let keys: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
            if keys.len() > 1 {
                assign(&mut tables, &keys, &value, &variable)?;
            }
        }
        for assignment in assignments {
            let malformed = || ConfigError::Assignment(assignment.clone());
            let (key, value) = assignment.split_once('=').ok_or_else(malformed)?;
            let keys: Vec<String> = key.split('.').map(str::to_owned).collect();
            if keys.len() < 2 || keys.iter().any(String::is_empty) {
                return Err(malformed());
            }
            assign(&mut tables, &keys, value, &format!("--set {assignment}"))?;
        }
        Ok(Self { tables })
    }

    /// The table `name` as `T`; `T`'s defaults where there is none.
    ///
    /// # Errors
    /// The table has a key that `T` does not know, or a value of a wrong kind.
    pub fn table<T: DeserializeOwned>(&self, name: &str) -> Result<T, ConfigError> {
        let value = self
            .tables
            .get(name)
            .cloned()
            .unwrap_or_else(|| Value::Table(Table::new()));
        value.try_into().map_err(|source| ConfigError::Table {
            table: name.to_owned(),
            source,
        })
    }
}

/// Sets the key that the path `keys` leads to.
fn assign(
    tables: &mut Table,
    keys: &[String],
    value: &str,
    origin: &str,
) -> Result<(), ConfigError> {
    let Some((last, parents)) = keys.split_last() else {
        return Ok(());
    };
    let mut table = tables;
    for key in parents {
        table = table
            .entry(key.clone())
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| ConfigError::NotATable {
                origin: origin.to_owned(),
                table: key.clone(),
            })?;
    }
    table.insert(last.clone(), parse_value(value));
    Ok(())
}

fn parse_value(text: &str) -> Value {
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Network {
        bridge: String,
        mtu: u32,
        dns: Vec<String>,
    }

    impl Default for Network {
        fn default() -> Self {
            Self {
                bridge: "gantry0".to_owned(),
                mtu: 1500,
                dns: Vec::new(),
            }
        }
    }

    fn merged(
        file: &str,
        environment: &[(&str, &str)],
        set: &[&str],
    ) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gantry.toml");
        fs::write(&path, file).unwrap();
        Config::merge(
            &path,
            environment
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
            &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_missing_file_means_defaults() {
        let config = Config::merge(Path::new("/nonexistent/x"), std::iter::empty(), &[]).unwrap();
        assert_eq!(
            config.table::<Network>("network").unwrap(),
            Network::default()
        );
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let config = merged(
            "[network]\nbridge = \"file\"\nmtu = 1\ndns = [\"1.1.1.1\"]",
            &[
                ("GANTRY_NETWORK__BRIDGE", "environment"),
                ("GANTRY_NETWORK__MTU", "2"),
                ("GANTRY_ROOT", "/x"),
            ],
            &["network.mtu=3"],
        )
        .unwrap();
        let network: Network = config.table("network").unwrap();
        assert_eq!(network.bridge, "environment");
        assert_eq!(network.mtu, 3);
        assert_eq!(network.dns, ["1.1.1.1"]);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = merged("[network]\nbrigde = \"x\"", &[], &[])
            .unwrap()
            .table::<Network>("network")
            .unwrap_err();
        assert!(crate::fault::chain(&error).contains("brigde"), "{error:?}");
    }

    #[test]
    fn a_malformed_assignment_is_refused() {
        for bad in ["network", "network.mtu", "mtu=3", ".mtu=3"] {
            assert!(
                matches!(merged("", &[], &[bad]), Err(ConfigError::Assignment(_))),
                "{bad}"
            );
        }
    }
}
