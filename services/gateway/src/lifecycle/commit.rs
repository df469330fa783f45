//! `commit`: a container's image, what it changed and what it was told to run
//! become an image. The image service makes it.

use std::sync::Arc;

use gantry_oci::ContainerConfig;
use gantry_oci::config::Present;

use super::{files, pause};
use crate::container::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::health;
use crate::peers::{Committed, NewImage};
use crate::roster::Entry;
use crate::spec::process;
use crate::state::State;
use crate::wanted::MountKind;

/// What is wanted of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitWanted {
    /// Empty: the image gets no name.
    pub reference: String,
    pub author: String,
    pub message: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// The container runs on while its files are read.
    pub no_pause: bool,
}

/// Makes an image of a container. One that runs is frozen meanwhile, and goes on
/// whatever comes of it.
///
/// # Errors
/// It is being removed, or a service fails.
pub async fn commit(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    wanted: CommitWanted,
) -> Result<Committed> {
    files::must_have_files(entry, "commit")?;
    let (comment, name) = (wanted.message.clone(), wanted.reference.clone());
    let image = NewImage {
        config: ran_with(&entry.record()),
        reference: wanted.reference,
        author: wanted.author,
        message: wanted.message,
        changes: wanted.changes,
    };
    let frozen = !wanted.no_pause && freeze(engine, entry).await?;
    let committed = engine.peers.image.commit(entry.id.as_str(), image).await;
    if let Ok(committed) = &committed {
        let more = [
            ("comment", comment),
            ("imageID", committed.image_id()),
            ("imageRef", name),
        ];
        engine.journal.note(&entry.record(), "commit", &more);
    }
    let thawed = if frozen {
        thaw(engine, entry).await
    } else {
        Ok(())
    };
    let committed = committed?;
    thawed?;
    Ok(committed)
}

/// Freezes a container that runs. False: there is nothing to freeze, or somebody
/// else has done it, who will also let it go on.
async fn freeze(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<bool> {
    if entry.record().state != State::Running {
        return Ok(false);
    }
    // Noted first: should this process end meanwhile, its next life lets the container go on.
    // Where that cannot be noted it would stay frozen, so it is not frozen then.
    if let Err(error) = engine.note(&entry.update(|record| record.frozen_for_commit = true)) {
        entry.update(|record| record.frozen_for_commit = false);
        return Err(error);
    }
    let frozen = match pause::freeze(engine, entry).await {
        Ok(()) => return Ok(true),
        // It has ended by itself, or was frozen, between the look and the step.
        Err(_) if entry.record().state != State::Running => Ok(false),
        Err(error) => Err(error),
    };
    entry.update(|record| record.frozen_for_commit = false);
    pause::note(engine, entry);
    frozen
}

/// Lets a container go on that was frozen for a commit.
///
/// # Errors
/// A service fails.
pub async fn thaw(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    // Somebody has frozen it for good since.
    if !entry.record().frozen_for_commit {
        return Ok(());
    }
    match pause::unpause(engine, entry).await {
        // Somebody else let it go on, or killed it.
        Err(Error::WrongState { .. }) => {}
        other => other?,
    }
    entry.update(|record| record.frozen_for_commit = false);
    pause::note(engine, entry);
    Ok(())
}

/// What the container ran with, as an image says it: the image's own wishes and
/// the person's, by the rules of a start.
fn ran_with(record: &Record) -> ContainerConfig {
    let wanted = &record.wanted;
    let mut config = record.image_config();
    match &wanted.entrypoint {
        Some(entrypoint) => {
            // One empty word takes the image's away.
            let none = entrypoint.iter().all(String::is_empty);
            config.entrypoint = (!none).then(|| entrypoint.clone());
            config.cmd = (!wanted.command.is_empty()).then(|| wanted.command.clone());
        }
        None if !wanted.command.is_empty() => config.cmd = Some(wanted.command.clone()),
        None => {}
    }
    process::merge(&mut config.env, &wanted.env);
    config.user = process::user(record);
    if !wanted.working_dir.is_empty() {
        config.working_dir.clone_from(&wanted.working_dir);
    }
    config.labels.extend(wanted.labels.clone());
    let published = wanted.ports.iter();
    let published = published.map(|p| format!("{}/{}", p.container_port, p.protocol.name()));
    let ports = record.exposed_ports().into_iter().chain(published);
    config.exposed_ports = ports.map(|port| (port, Some(Present {}))).collect();
    let volumes = wanted.mounts.iter();
    // One with a name is this machine's; one without says that the program wants a place.
    let volumes = volumes.filter(|m| m.kind == MountKind::Volume && m.source.is_empty());
    let volumes = volumes.map(|m| (m.target.clone(), Some(Present {})));
    config.volumes.extend(volumes);
    if !wanted.stop_signal.is_empty() {
        config.stop_signal.clone_from(&wanted.stop_signal);
    }
    config.healthcheck = health::merged(&wanted.health, config.healthcheck);
    if let Some(seconds) = wanted.stop_timeout_seconds {
        config.stop_timeout = Some(seconds.into());
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerId, Image};
    use crate::wanted::{HealthWanted, Mount, PortMapping, Wanted};

    fn record(wanted: Wanted) -> Record {
        let id = ContainerId::try_from("a".repeat(64)).unwrap();
        let mut record = Record::new(id, "c".to_owned(), wanted);
        let words = |text: &str| Some(text.split(' ').map(str::to_owned).collect());
        record.image = Some(Image {
            id: "sha256:1".to_owned(),
            config: ContainerConfig {
                entrypoint: words("/entry"),
                cmd: words("image cmd"),
                env: vec!["A=1".to_owned(), "B=2".to_owned()],
                user: "web".to_owned(),
                ..ContainerConfig::default()
            },
        });
        record
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn without_wishes_the_image_keeps_its_own() {
        let record = record(Wanted::default());
        assert_eq!(ran_with(&record), record.image_config());
    }

    #[test]
    fn what_a_person_asked_for_is_in_the_image() {
        let config = ran_with(&record(Wanted {
            command: words("sh -c x"),
            env: words("B=3 A C=4"),
            user: "5".to_owned(),
            working_dir: "/w".to_owned(),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            exposed_ports: words("53/udp"),
            ports: vec![PortMapping {
                container_port: 80,
                ..PortMapping::default()
            }],
            mounts: vec![
                Mount {
                    kind: MountKind::Volume,
                    target: "/data".to_owned(),
                    ..Mount::default()
                },
                Mount {
                    source: "/host".to_owned(),
                    target: "/bound".to_owned(),
                    ..Mount::default()
                },
            ],
            stop_signal: "SIGQUIT".to_owned(),
            ..Wanted::default()
        }));
        assert_eq!(config.entrypoint.unwrap(), ["/entry"]);
        assert_eq!(config.cmd.unwrap(), ["sh", "-c", "x"]);
        assert_eq!(config.env, ["B=3", "C=4"]);
        assert_eq!((&*config.user, &*config.working_dir), ("5", "/w"));
        assert_eq!(config.labels["k"], "v");
        let ports: Vec<_> = config.exposed_ports.keys().collect();
        assert_eq!(ports, ["53/udp", "80/tcp"]);
        assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/data"]);
        assert_eq!(config.stop_signal, "SIGQUIT");
    }

    #[test]
    fn the_health_check_is_in_the_image_with_what_only_the_image_says_of_it() {
        let mut container = record(Wanted {
            health: HealthWanted {
                test: words("CMD-SHELL true"),
                interval_nanos: 7_000_000_000,
                ..HealthWanted::default()
            },
            ..Wanted::default()
        });
        let check = ran_with(&container).healthcheck.unwrap();
        assert_eq!(
            (check.test, check.interval),
            (words("CMD-SHELL true"), 7_000_000_000)
        );
        if let Some(image) = &mut container.image {
            image.config.healthcheck = Some(gantry_oci::Healthcheck {
                test: words("CMD image"),
                interval: 1_000_000_000,
                retries: 9,
                ..gantry_oci::Healthcheck::default()
            });
        }
        let check = ran_with(&container).healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (7_000_000_000, 9));
        assert_eq!(check.test, words("CMD-SHELL true"));
        container.wanted.health = HealthWanted::default();
        let check = ran_with(&container).healthcheck.unwrap();
        assert_eq!((check.test, check.retries), (words("CMD image"), 9));
    }

    #[test]
    fn an_entry_point_of_a_person_puts_the_images_command_aside() {
        let config = ran_with(&record(Wanted {
            entrypoint: Some(words("/mine")),
            ..Wanted::default()
        }));
        assert_eq!(
            (config.entrypoint, config.cmd),
            (Some(words("/mine")), None)
        );
        let config = ran_with(&record(Wanted {
            entrypoint: Some(words("")),
            command: words("x"),
            ..Wanted::default()
        }));
        assert_eq!((config.entrypoint, config.cmd), (None, Some(words("x"))));
    }
}
