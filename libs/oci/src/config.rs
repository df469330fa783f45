//! The image configuration: a type of our own, because nothing may be lost from it.
//!
//! Docker keeps more in this document than the image specification names
//! (`Healthcheck`, `Shell`, `OnBuild`), writes `null` for what is empty, and
//! others add fields. All of it is kept: named fields here, the rest in `extra`,
//! so that a configuration can be read, changed (a commit) and written again.
//! Its readers are mostly Go's, and it is read as they do ([`crate::lenient`]).
//! The digest of a configuration is that of the bytes received, never of a
//! document written again.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::lenient::{self, Shape};
use crate::manifest::ManifestError;
use crate::platform::Platform;

/// The longest configuration that is read, in bytes.
pub const CONFIG_MAX: usize = 8 << 20;

/// Fields this engine has no name for.
pub type Extra = BTreeMap<String, serde_json::Value>;

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The configuration of an image (image specification, "image configuration").
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ImageConfig {
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    /// CPU architecture, as Go's GOARCH.
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Operating system, as Go's GOOS.
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// Version of the operating system.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features the operating system must have.
    #[serde(
        default,
        rename = "os.features",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_features: Option<Vec<String>>,
    /// What a container of the image runs, and how.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    /// The layers, by their uncompressed digests.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
    /// How each layer came about, the oldest first.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<History>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The layers of an image.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootFs {
    /// Always `layers`, also where it is absent.
    #[serde(default = "layers", rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, the lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

fn layers() -> String {
    "layers".to_owned()
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            kind: layers(),
            diff_ids: Vec::new(),
            extra: Extra::new(),
        }
    }
}

/// How one layer, or a step without one, came about.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// True when the step changed no file, and so has no layer.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_false"
    )]
    pub empty_layer: bool,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The object without members that stands for presence in `Volumes` and `ExposedPorts`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Present {}

/// A set, as Go writes one: names mapped to empty objects.
pub type Names = BTreeMap<String, Option<Present>>;

/// What a container of the image runs, and how.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// `user[:group]`, by name or number. Empty: root.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// Ports the program listens on: `80/tcp`, `53/udp`, `7000-7005`.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: Names,
    /// `NAME=value`.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    /// What runs; `Cmd` is appended. Absent and empty differ: an empty one resets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments, or the command when there is no entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Directories that want a volume.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub volumes: Names,
    /// Working directory. Empty: `/`.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Labels.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the program to stop: `SIGQUIT`, `3`. Empty: SIGTERM.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Seconds to wait before the program is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Docker's health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell for commands in shell form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Build steps to run in an image built on this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Vec<String>>,
    /// Everything else Docker may have written: `Hostname`, `Tty`, `ArgsEscaped` …
    #[serde(flatten)]
    pub extra: Extra,
}

/// Docker's health check. Times are nanoseconds; 0 means the default.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", "…"]`. Empty: inherit.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub test: Vec<String>,
    /// Time between two checks.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_zero"
    )]
    pub interval: i64,
    /// Time after which a check has failed.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_zero"
    )]
    pub timeout: i64,
    /// Time in which failures do not count.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_zero"
    )]
    pub start_period: i64,
    /// Time between two checks in the start period.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_zero"
    )]
    pub start_interval: i64,
    /// Failures in a row that make a container unhealthy.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "is_zero"
    )]
    pub retries: i64,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(value: &i64) -> bool {
    *value == 0
}

const NAMES: Shape = Shape::Map(&Shape::Any);
const HEALTHCHECK: Shape = Shape::Record(&[
    ("Test", &Shape::Texts),
    ("Interval", &Shape::Any),
    ("Timeout", &Shape::Any),
    ("StartPeriod", &Shape::Any),
    ("StartInterval", &Shape::Any),
    ("Retries", &Shape::Any),
]);
/// The form of a [`ContainerConfig`].
const CONTAINER_CONFIG: Shape = Shape::Record(&[
    ("User", &Shape::Text),
    ("ExposedPorts", &NAMES),
    ("Env", &Shape::Texts),
    ("Entrypoint", &Shape::Texts),
    ("Cmd", &Shape::Texts),
    ("Volumes", &NAMES),
    ("WorkingDir", &Shape::Text),
    ("Labels", &Shape::Map(&Shape::Text)),
    ("StopSignal", &Shape::Text),
    ("StopTimeout", &Shape::Any),
    ("Healthcheck", &HEALTHCHECK),
    ("Shell", &Shape::Texts),
    ("OnBuild", &Shape::Texts),
]);
const HISTORY: Shape = Shape::Record(&[
    ("created", &Shape::Text),
    ("created_by", &Shape::Text),
    ("author", &Shape::Text),
    ("comment", &Shape::Text),
    ("empty_layer", &Shape::Any),
]);
const IMAGE_CONFIG: Shape = Shape::Record(&[
    ("created", &Shape::Text),
    ("author", &Shape::Text),
    ("architecture", &Shape::Text),
    ("variant", &Shape::Text),
    ("os", &Shape::Text),
    ("os.version", &Shape::Text),
    ("os.features", &Shape::Texts),
    ("config", &CONTAINER_CONFIG),
    (
        "rootfs",
        &Shape::Record(&[("type", &Shape::Text), ("diff_ids", &Shape::Texts)]),
    ),
    ("history", &Shape::List(&HISTORY)),
]);

impl ContainerConfig {
    /// Reads what a container is to run with.
    ///
    /// # Errors
    /// It is not JSON, or a field has another type.
    pub fn parse(raw: &[u8]) -> Result<Self, serde_json::Error> {
        lenient::read(raw, &CONTAINER_CONFIG)
    }
}

impl ImageConfig {
    /// Reads a configuration.
    pub fn parse(raw: &[u8]) -> Result<Self, ManifestError> {
        if raw.len() > CONFIG_MAX {
            return Err(ManifestError::TooLarge {
                size: raw.len() as u64,
                limit: CONFIG_MAX as u64,
            });
        }
        let json = |source| ManifestError::Json { source };
        let mut config: Self = lenient::read(raw, &IMAGE_CONFIG).map_err(json)?;
        // What a `null` in a list stands for.
        config.config.env.retain(|variable| !variable.is_empty());
        if config.rootfs.kind.is_empty() {
            config.rootfs.kind = layers();
        }
        if config.rootfs.kind != "layers" {
            return Err(ManifestError::RootFsType {
                kind: config.rootfs.kind,
            });
        }
        Ok(config)
    }

    /// The platform the image is for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }

    /// The chain IDs of the layers, the lowest first: what a stack of layers up to each is named by
    /// (image specification, "Layer ChainID").
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.rootfs.diff_ids.len());
        for diff_id in &self.rootfs.diff_ids {
            let next = match chain.last() {
                None => diff_id.clone(),
                Some(parent) => Digest::sha256_of(format!("{parent} {diff_id}").as_bytes()),
            };
            chain.push(next);
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = r#"{
        "architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","container":"abc","docker_version":"20.10",
        "config":{"Hostname":"","User":"","Tty":false,"Env":["PATH=/bin"],"Cmd":null,"Entrypoint":["/e"],
            "Image":"sha256:x","Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},"WorkingDir":"","OnBuild":null,
            "Labels":null,"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":5000000000},"Shell":["/bin/ash","-c"]},
        "history":[{"created":"2024-01-01T00:00:00Z","created_by":"ADD"},{"empty_layer":true}],
        "rootfs":{"type":"layers","diff_ids":[
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;

    #[test]
    fn what_docker_writes_is_kept_whole() {
        let config = ImageConfig::parse(DOCKER.as_bytes()).unwrap();
        let run = &config.config;
        assert_eq!(run.healthcheck.as_ref().unwrap().interval, 5_000_000_000);
        assert_eq!(
            run.shell.as_deref(),
            Some(&["/bin/ash".to_owned(), "-c".to_owned()][..])
        );
        assert_eq!(run.cmd, None);
        assert!(run.labels.is_empty() && run.volumes.contains_key("/data"));
        assert!(config.history[1].empty_layer);
        assert_eq!(config.extra["docker_version"], "20.10");
        let again = serde_json::to_vec(&config).unwrap();
        assert_eq!(ImageConfig::parse(&again).unwrap(), config);
    }

    #[test]
    fn a_configuration_that_only_go_would_read_is_read_the_same() {
        let text = br#"{"Architecture":"amd64","OS":"linux","os":null,
            "Config":{"cmd":"/bin/true","ENV":["A=1",null],"entrypoint":null,"Labels":{"Cmd":null},
                "healthcheck":{"test":["CMD","true"],"interval":5},"ArgsEscaped":true,"Volumes":{"/v":null}},
            "RootFS":{"diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},
            "history":[null,{"CREATED_BY":"x","empty_layer":null}]}"#;
        let config = ImageConfig::parse(text).unwrap();
        assert_eq!(config.platform().to_string(), "linux/amd64");
        assert_eq!(config.rootfs.kind, "layers");
        assert_eq!(config.rootfs.diff_ids.len(), 1);
        let run = &config.config;
        assert_eq!(run.cmd.as_deref(), Some(&["/bin/true".to_owned()][..]));
        assert_eq!(run.env, ["A=1"]);
        assert_eq!(run.entrypoint, None);
        assert_eq!(run.labels["Cmd"], "");
        assert_eq!(run.healthcheck.as_ref().unwrap().interval, 5);
        assert_eq!(run.extra["ArgsEscaped"], true);
        assert!(run.volumes.contains_key("/v"));
        assert_eq!(config.history[1].created_by.as_deref(), Some("x"));
        assert!(config.extra.is_empty(), "{:?}", config.extra);
    }

    #[test]
    fn chain_ids_hash_the_parent_and_the_layer() {
        let config = ImageConfig::parse(DOCKER.as_bytes()).unwrap();
        let chain = config.chain_ids();
        let first = &config.rootfs.diff_ids[0];
        assert_eq!(&chain[0], first);
        assert_eq!(
            chain[1],
            Digest::sha256_of(format!("{first} {first}").as_bytes())
        );
    }

    #[test]
    fn an_artifact_configuration_without_fields_is_read() {
        let config = ImageConfig::parse(b"{}").unwrap();
        assert!(config.rootfs.diff_ids.is_empty());
        assert!(ImageConfig::parse(b"[]").is_err());
        assert!(ImageConfig::parse(br#"{"rootfs":{"type":"zip","diff_ids":[]}}"#).is_err());
    }

    /// Found by the fuzzer: the last digit changed each time it was written.
    #[test]
    fn a_number_of_a_field_that_nobody_knows_is_kept() {
        let text = br#"{"unknown":166.05776627963145224192}"#;
        let config = ImageConfig::parse(text).unwrap();
        let written = serde_json::to_vec(&config).unwrap();
        assert_eq!(ImageConfig::parse(&written).unwrap(), config);
    }
}
