//! `create`: a record and a writable layer. Nothing runs yet.

use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;

use super::volumes_from;
use crate::container::{ContainerId, Record, StepTime};
use crate::engine::{Engine, change};
use crate::error::{Error, Result};
use crate::etc_files;
use crate::health;
use crate::own_ids;
use crate::peers::Prepared;
use crate::roster::Entry;
use crate::signal;
use crate::spec::{self, mount_checks, process};
use crate::state::Event;
use crate::steps::{self, Step};
use crate::wanted::{NamespaceMode, NetworkMode, RestartName, Wanted};

/// The writable layer.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    engine: &'a Engine,
    entry: &'a Entry,
    pub(super) made: OnceLock<(Prepared, StepTime)>,
}

impl<'a> Layer<'a> {
    pub(super) fn new(engine: &'a Engine, entry: &'a Entry) -> Self {
        Self {
            engine,
            entry,
            made: OnceLock::new(),
        }
    }
}

impl Step for Layer<'_> {
    fn name(&self) -> &'static str {
        "image.prepare"
    }

    fn act(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let record = self.entry.record();
            let began = jiff::Timestamp::now();
            let images = &self.engine.peers.image;
            let prepared = images.prepare(&record).await?;
            let _once = self
                .made
                .set((prepared, StepTime::since(self.name(), began)));
            Ok(())
        })
    }

    fn undo(&self) -> BoxFuture<'_, Result<()>> {
        // What the layer's volumes have was never seen by a program.
        Box::pin(self.engine.peers.image.delete(self.entry.id.as_str(), true))
    }
}

/// Creates a container.
///
/// # Errors
/// The configuration is wrong, the name is in use, the image is not in the
/// store, or a service fails. Nothing is left then.
pub async fn create(engine: &Arc<Engine>, wanted: Wanted, name: String) -> Result<Arc<Entry>> {
    check_runtime(engine, &wanted).await?;
    let entry = begin(engine, wanted, name, Purpose::Keep)?;
    let layer = Layer::new(engine, &entry);
    if let Err(failed) = steps::perform(&[&[&layer]]).await {
        never_happened(engine, &entry, failed.left.is_empty()).await;
        return Err(failed.error);
    }
    let record = made(engine, &entry, &layer).await?;
    if let Err(error) = engine.keep(&record).await {
        // It would be gone after a power cut, so it did not happen.
        if let Err(left) = super::remove::remove_with_volumes(engine, &entry, true).await {
            tracing::error!(container = %entry.id, error = %left, "a failed creation is not removed");
            engine.untidy.notify_one();
        }
        return Err(error);
    }
    Ok(entry)
}

/// What a container is created for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be started later, or not.
    Keep,
    /// To be started at once: a run that is broken off before that leaves nothing.
    Run,
}

/// Checks everything, then records the intent: from here on the container has
/// its id and its name.
pub(super) fn begin(
    engine: &Engine,
    mut wanted: Wanted,
    name: String,
    purpose: Purpose,
) -> Result<Arc<Entry>> {
    check(engine, &wanted)?;
    let all_mounts = volumes_from::mounts(engine, &wanted)?;
    let own_ids = own_ids::wanted(&wanted.userns_mode)?;
    mount_checks::check(&all_mounts, own_ids)?;
    if wanted.hostname.is_empty() && wanted.network() == NetworkMode::Host {
        // On the host's network a container has the host's name, as in Docker.
        // Where it cannot be read, the container gets its short id as any other.
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        wanted.hostname = name.trim_end().to_owned();
    }
    let mut record = Record::new(ContainerId::random()?, name, wanted);
    record.mounts = Some(all_mounts);
    record.run_unfinished = purpose == Purpose::Run;
    let entry = engine.roster.add_with(record, |record, others| {
        let Some(count) = own_ids else {
            return Ok(());
        };
        let taken = others.filter_map(|other| other.own_ids);
        record.own_ids = Some(own_ids::free(engine.own_ids, count, taken)?);
        Ok(())
    })?;
    if let Err(error) = engine.note(&entry.record()) {
        engine.roster.remove(&entry);
        return Err(error);
    }
    Ok(entry)
}

/// The layer is there: the container is created. Its record is yet to be kept.
pub(super) async fn made(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    layer: &Layer<'_>,
) -> Result<Arc<Record>> {
    let Some((prepared, step)) = layer.made.get().cloned() else {
        return Err(Error::Task {
            problem: "a writable layer was made and is not there".to_owned(),
        });
    };
    let record = change(entry, "create", Event::Created, |record| {
        record.image = Some(prepared.image);
        record.rootfs = Some(prepared.rootfs);
        record.mounts = Some(prepared.mounts);
        record.steps = vec![step];
    })?;
    // Now that the image is known: is there something to run, and where?
    let runnable = process::args(&record).and_then(|_args| process::cwd(&record));
    if let Err(error) = runnable {
        // Its failure is that of the creation, which is what the caller hears.
        let _reported = super::remove::remove_with_volumes(engine, entry, false).await;
        return Err(error);
    }
    engine.journal.note(&record, "create", &[]);
    Ok(record)
}

/// Forgets a container whose creation was undone. Where something could not be
/// undone its record stays until it is; its name is free all the same.
pub(super) async fn never_happened(engine: &Arc<Engine>, entry: &Arc<Entry>, undone: bool) {
    engine.roster.remove(entry);
    if !undone {
        engine.try_again(entry);
        return;
    }
    let record = entry.record();
    let _was_creating = entry.change(Event::Removed, |_| {});
    if let Err(error) = engine.discard(&record).await {
        tracing::error!(%error, "the record of an undone creation stays");
    }
}

/// Refuses a runtime that is not there, before anything is changed. The engine's
/// own needs no question.
pub(super) async fn check_runtime(engine: &Engine, wanted: &Wanted) -> Result<()> {
    match wanted.other_runtime() {
        None => Ok(()),
        Some(name) => engine.peers.runtime.find(name).await,
    }
}

/// Refuses what cannot be created, before anything is changed.
fn check(engine: &Engine, wanted: &Wanted) -> Result<()> {
    if wanted.image.is_empty() {
        return Err(Error::invalid("image", "none is named"));
    }
    if let Some(runtime) = wanted.other_runtime() {
        let refused = |option: &str, what: &str| {
            Err(Error::invalid(
                option,
                format!(
                    "{what} by Gantry's own runtime, and the container is to be made by {runtime}; leave one of the two out"
                ),
            ))
        };
        if wanted.init {
            return refused("init", "the init is run");
        }
        if own_ids::wanted(&wanted.userns_mode)?.is_some() {
            return refused("userns", "ids of a container's own are mapped");
        }
    }
    if wanted.auto_remove && wanted.restart_policy.name != RestartName::No {
        return Err(Error::invalid(
            "restart",
            "a container with --rm is removed when it ends; leave one of the two out",
        ));
    }
    if !wanted.stop_signal.is_empty() {
        signal::parse(&wanted.stop_signal)?;
    }
    if wanted.hostname.len() > 64 || wanted.hostname.contains(['/', '\0', '\n']) {
        return Err(Error::invalid(
            "hostname",
            format!("{:?} is not a host name", wanted.hostname),
        ));
    }
    for port in &wanted.ports {
        if port.container_port == 0 {
            return Err(Error::invalid("publish", "the container's port is 0"));
        }
    }
    let network = wanted.network();
    for (field, address) in [
        ("ip", &wanted.ip_address),
        ("mac-address", &wanted.mac_address),
    ] {
        if !matches!(network, NetworkMode::Network(_)) && !address.is_empty() {
            return Err(Error::invalid(
                field,
                format!(
                    "an address needs a network, and this is {}",
                    wanted.network_mode
                ),
            ));
        }
    }
    if let NetworkMode::Container(other) = &network {
        engine.roster.find(other)?;
        for (field, is_given, what) in [
            ("publish", !wanted.ports.is_empty(), "ports"),
            ("publish-all", wanted.publish_all, "ports"),
            ("expose", !wanted.exposed_ports.is_empty(), "ports"),
            ("hostname", !wanted.hostname.is_empty(), "name"),
            ("dns", !wanted.dns_servers.is_empty(), "name servers"),
            ("add-host", !wanted.extra_hosts.is_empty(), "hosts"),
        ] {
            if is_given {
                let problem = format!(
                    "the {what} of a shared network are of the container that has it: give them to {other}"
                );
                return Err(Error::invalid(field, problem));
            }
        }
    }
    let of = NamespaceMode::parse;
    for mode in [of(&wanted.pid_mode), wanted.ipc(), of(&wanted.uts_mode)] {
        if let Some(NamespaceMode::Container(other)) = mode {
            engine.roster.find(&other)?;
        }
    }
    etc_files::check(&wanted.extra_hosts)?;
    health::check(&wanted.health)?;
    spec::check(wanted, &engine.host)?;
    if let Some(NamespaceMode::Container(other)) = wanted.ipc() {
        let other = engine.roster.find(&other)?.record();
        if matches!(other.wanted.ipc_mode.as_str(), "" | "private" | "none") {
            let problem = format!(
                "the container {} has its IPC namespace for itself; create it with --ipc shareable",
                other.name
            );
            return Err(Error::invalid("ipc", problem));
        }
    }
    Ok(())
}
