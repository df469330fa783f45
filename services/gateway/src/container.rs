//! A container as the gateway remembers it: who it is, what was asked for, what
//! that came to, and where it is in its life.
//!
//! A [`Record`] is a value: lists and inspections read a shared copy, and every
//! change goes through [`crate::roster::Entry::change`], the only setter of
//! [`Record::state`]. The record as JSON is also what is kept on disk (see
//! [`crate::store`]); fields are only ever added, with a default.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::health::Health;
use crate::own_ids::OwnIds;
use crate::state::State;
use crate::store::Written;
use crate::store::load::Damaged;
use crate::wanted::{Mount, PortMapping, Wanted};

/// Length of an id, in hexadecimal digits.
const ID_DIGITS: usize = 64;

/// How much of an id people see.
const SHORT_DIGITS: usize = 12;

/// 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// A new one out of the kernel's random numbers.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn random() -> Result<Self, Error> {
        let mut bytes = [0_u8; ID_DIGITS / 2];
        getrandom::fill(&mut bytes).map_err(|source| Error::Random {
            problem: source.to_string(),
        })?;
        Ok(Self(hex::encode(bytes)))
    }

    /// Whether `text` has an id's form.
    #[must_use]
    pub fn is_id(text: &str) -> bool {
        text.len() == ID_DIGITS
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..SHORT_DIGITS]
    }
}

/// Text that is not an id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a container id: 64 hexadecimal digits")]
pub struct NotAnId(String);

impl TryFrom<String> for ContainerId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        if Self::is_id(&text) {
            Ok(Self(text))
        } else {
            Err(NotAnId(text))
        }
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0-255, or 128 + the signal.
    pub code: i32,
    /// The signal that ended it; 0: it exited by itself.
    #[serde(default)]
    pub signal: i32,
    #[serde(default)]
    pub oom_killed: bool,
    #[serde(default)]
    pub at: Timestamp,
    /// Why the end is not the program's own doing. Empty: it is.
    #[serde(default)]
    pub error: String,
}

impl Exit {
    /// Of a process that a signal has just ended.
    #[must_use]
    pub fn killed(signal: u32) -> Self {
        let signal = i32::try_from(signal).unwrap_or_default();
        Self {
            code: 128 + signal,
            signal,
            at: Timestamp::now(),
            ..Self::default()
        }
    }
}

/// The image a container was made from, and what of it the container needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// "sha256:…".
    pub id: String,
    /// What runs by the image's account. Only the parts that a start reads.
    pub config: gantry_oci::ContainerConfig,
}

/// Where the container's root file system is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Read-only layers, the top-most first.
    pub lower: Vec<String>,
    pub upper: String,
    pub work: String,
}

/// A network namespace with an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub network: String,
    pub netns: String,
    /// The user namespace that owns it. Empty: the host's.
    #[serde(default)]
    pub userns: String,
    pub interface: String,
    /// With the prefix length: "10.66.0.5/16".
    pub address: String,
    pub gateway: String,
    pub mac: String,
    pub ports: Vec<PortMapping>,
    pub dns_servers: Vec<String>,
    pub dns_search: Vec<String>,
    pub created: Option<Timestamp>,
}

impl Endpoint {
    /// The address without its prefix length.
    #[must_use]
    pub fn ip(&self) -> &str {
        self.address.split('/').next().unwrap_or_default()
    }
}

/// One timed step of a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub start: i64,
    /// Nanoseconds.
    pub duration: i64,
}

impl StepTime {
    #[must_use]
    pub fn since(name: &str, start: Timestamp) -> Self {
        let duration = Timestamp::now().as_nanosecond() - start.as_nanosecond();
        Self {
            name: name.to_owned(),
            start: i64::try_from(start.as_nanosecond()).unwrap_or(i64::MAX),
            duration: i64::try_from(duration).unwrap_or(i64::MAX),
        }
    }
}

/// Everything the gateway knows of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: ContainerId,
    pub name: String,
    pub created: Timestamp,
    /// Grows with every change: the larger is the newer.
    #[serde(default)]
    pub revision: u64,
    pub wanted: Wanted,
    /// None while it is being created.
    #[serde(default)]
    pub image: Option<Image>,
    #[serde(default)]
    pub rootfs: Option<Rootfs>,
    pub state: State,
    /// When the present or last start began. Exits from before belong to an
    /// earlier run.
    #[serde(default)]
    pub start_began: Option<Timestamp>,
    /// When the present or last run's program was executed. None: it never ran.
    #[serde(default)]
    pub started: Option<Timestamp>,
    /// The first process, as the host sees it. 0: none.
    #[serde(default)]
    pub pid: i32,
    /// How the last run ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// How many runs have ended.
    #[serde(default)]
    pub exits: u64,
    /// Held from the start to the end of a run.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// Why the last start failed, or why it cannot be removed.
    #[serde(default)]
    pub error: String,
    /// Restarts by the policy since a person started it.
    #[serde(default)]
    pub restarts: u32,
    /// A person ended it: the restart policy leaves it alone.
    #[serde(default)]
    pub stopped_by_user: bool,
    /// Steps of the last start.
    #[serde(default)]
    pub steps: Vec<StepTime>,
    /// How the checks of the present or last run went. None: it has none.
    #[serde(default)]
    pub health: Option<Health>,
    /// All that is mounted: its own, those of other containers, the image's
    /// volumes. None: a record from before these were kept.
    #[serde(default)]
    pub mounts: Option<Vec<Mount>>,
    /// Users and groups of its own. None: the host's.
    #[serde(default)]
    pub own_ids: Option<OwnIds>,
    /// A commit has frozen it, or is about to, and will let it go on.
    #[serde(default)]
    pub frozen_for_commit: bool,
    /// Its removal takes its anonymous volumes along.
    #[serde(default)]
    pub remove_volumes: bool,
    /// `run` makes it and has not started it yet: where that is broken off, it
    /// is removed again.
    #[serde(default)]
    pub run_unfinished: bool,
    /// Why it cannot be relied on now. Not kept.
    #[serde(skip)]
    pub sick: String,
    /// The file with its damaged record. It is a stand-in then: only its id, and
    /// perhaps its name, are known. Not kept.
    #[serde(skip)]
    pub damaged: Option<PathBuf>,
    /// What of it is on the disk.
    #[serde(skip)]
    pub written: Written,
}

impl Record {
    #[must_use]
    pub fn new(id: ContainerId, name: String, wanted: Wanted) -> Self {
        Self {
            id,
            name,
            created: Timestamp::now(),
            revision: 0,
            wanted,
            image: None,
            rootfs: None,
            state: State::Creating,
            start_began: None,
            started: None,
            pid: 0,
            exit: None,
            exits: 0,
            endpoint: None,
            error: String::new(),
            restarts: 0,
            stopped_by_user: false,
            steps: Vec::new(),
            health: None,
            mounts: None,
            own_ids: None,
            frozen_for_commit: false,
            remove_volumes: false,
            run_unfinished: false,
            sick: String::new(),
            damaged: None,
            written: Written::default(),
        }
    }

    /// Notes how the present run ended.
    pub fn end(&mut self, exit: &Exit) {
        self.exit = Some(exit.clone());
        self.exits += 1;
        self.pid = 0;
        self.sick = String::new();
    }

    /// What is known of a container whose record is damaged.
    #[must_use]
    pub fn stand_in(id: ContainerId, damaged: Damaged) -> Self {
        let name = damaged.name.clone();
        let name = name.unwrap_or_else(|| id.short().to_owned());
        let mut record = Self::new(id, name, Wanted::default());
        record.created = damaged.modified();
        record.state = State::Dead;
        record.error = format!(
            "its record is damaged and was set aside: {:?}; its files are kept. Repair the record there and restart the gateway, or remove the container",
            damaged.path
        );
        record.damaged = Some(damaged.path);
        record
    }

    /// The container's host name: what was asked for, or the short id.
    #[must_use]
    pub fn hostname(&self) -> &str {
        if self.wanted.hostname.is_empty() {
            self.id.short()
        } else {
            &self.wanted.hostname
        }
    }

    /// All that is mounted in it beside the kernel's file systems.
    #[must_use]
    pub fn mounts(&self) -> &[Mount] {
        self.mounts.as_deref().unwrap_or(&self.wanted.mounts)
    }

    /// What the image says of running it; nothing while there is no image.
    #[must_use]
    pub fn image_config(&self) -> gantry_oci::ContainerConfig {
        self.image
            .as_ref()
            .map(|image| image.config.clone())
            .unwrap_or_default()
    }

    /// Name or number of the signal that asks the container to end.
    #[must_use]
    pub fn stop_signal(&self) -> String {
        let image = self.image.as_ref().map(|image| &image.config.stop_signal);
        [Some(&self.wanted.stop_signal), image]
            .into_iter()
            .flatten()
            .find(|signal| !signal.is_empty())
            .cloned()
            .unwrap_or_else(|| "SIGTERM".to_owned())
    }

    /// Time from the stop signal to SIGKILL. None: it is never killed.
    #[must_use]
    pub fn stop_timeout(&self) -> Option<Duration> {
        let seconds = self.wanted.stop_timeout_seconds.unwrap_or(10);
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }

    /// Ports it exposes, its own and the image's: "80/tcp".
    #[must_use]
    pub fn exposed_ports(&self) -> Vec<String> {
        let mut ports: Vec<String> = self
            .image
            .iter()
            .flat_map(|image| image.config.exposed_ports.keys())
            .chain(&self.wanted.exposed_ports)
            .map(|port| {
                if port.contains('/') {
                    port.clone()
                } else {
                    format!("{port}/tcp")
                }
            })
            .collect();
        ports.sort();
        ports.dedup();
        ports
    }
}
