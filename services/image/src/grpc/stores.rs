//! `StoreService`: the store as a whole.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _};
use gantry_kit::journal::{Follower, Told};
use gantry_kit::pages::{PAGE_BYTES, bytes};
use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::store_service_server::StoreService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::{Answer, EventStream, ImageGrpc, volumes, wire};
use crate::ImageStore;
use crate::account::{Account, FreedBy, ImageUse, Owner, OwnerKind, SnapshotUse, VolumeUsage};
use crate::check::{CheckEvent, CheckWatcher, Checked};
use crate::prune::{PruneOptions, Pruned};

#[tonic::async_trait]
impl StoreService for ImageGrpc {
    type StreamDiskUsageStream = EventStream<proto::DiskUsageResponse>;
    type CheckStream = EventStream<proto::CheckResponse>;
    type EventsStream = EventStream<proto::EventsResponse>;

    async fn disk_usage(
        &self,
        _request: Request<proto::DiskUsageRequest>,
    ) -> Answer<proto::DiskUsageResponse> {
        let account = self.with_store(|store| store.account()).await?;
        Ok(Response::new(usage(account)))
    }

    async fn stream_disk_usage(
        &self,
        _request: Request<proto::DiskUsageRequest>,
    ) -> Answer<Self::StreamDiskUsageStream> {
        let account = self.with_store(|store| store.account()).await?;
        let parts = usage_parts(usage(account)).into_iter().map(Ok);
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn prune(&self, request: Request<proto::PruneRequest>) -> Answer<proto::PruneResponse> {
        let request = request.into_inner();
        let options = PruneOptions {
            all: request.all,
            filters: request.filters.into_iter().map(wire::filter).collect(),
            dry_run: request.dry_run,
        };
        let pruned = self.with_store(move |store| store.prune(&options)).await?;
        let Pruned {
            untagged,
            deleted,
            reclaimed,
        } = pruned;
        Ok(Response::new(proto::PruneResponse {
            untagged,
            deleted,
            reclaimed,
        }))
    }

    async fn check(&self, request: Request<proto::CheckRequest>) -> Answer<Self::CheckStream> {
        let repair = request.into_inner().repair;
        let store = self.store.clone();
        // Unbounded, but filled with a message for each object of the store at most.
        let (sender, receiver) = mpsc::unbounded_channel();
        let cancel = self.stopping.child_token();
        let watcher: CheckWatcher = {
            let sender = sender.clone();
            Arc::new(move |event| _ = sender.send(Ok(check_event(event))))
        };
        tokio::spawn(
            async move {
                let mut checking = Box::pin(store.check(repair, cancel.clone(), watcher));
                let outcome = tokio::select! {
                    outcome = &mut checking => outcome,
                    () = sender.closed() => {
                        cancel.cancel();
                        checking.await
                    }
                };
                let _ = sender.send(outcome.map(check_done).map_err(Status::from));
            }
            .in_current_span(),
        );
        let events = UnboundedReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(events)))
    }

    async fn events(&self, request: Request<proto::EventsRequest>) -> Answer<Self::EventsStream> {
        let events = self.store.events();
        let after = request.into_inner().after;
        let after = after.filter(|after| after.life == events.life);
        // A place that is still to come was never given.
        let after = after.map_or(0, |after| after.sequence.min(events.journal.last()));
        let begin = proto::EventsResponse {
            position: Some(position(&self.store, after)),
            event: None,
        };
        let following = Following {
            store: self.store.clone(),
            follower: events.journal.follow(after),
            ready: Vec::new().into_iter(),
        };
        let events = stream::unfold(following, |mut following| async {
            let told = following.next().await;
            Some((Ok(told), following))
        });
        let stopping = self.stopping.clone().cancelled_owned();
        let events = stream::iter([Ok(begin)]).chain(events).take_until(stopping);
        Ok(Response::new(Box::pin(events)))
    }

    async fn last_event(
        &self,
        _request: Request<proto::LastEventRequest>,
    ) -> Answer<proto::LastEventResponse> {
        let last = self.store.events().journal.last();
        Ok(Response::new(proto::LastEventResponse {
            position: Some(position(&self.store, last)),
        }))
    }
}

fn position(store: &ImageStore, sequence: u64) -> proto::EventPosition {
    proto::EventPosition {
        life: store.events().life.clone(),
        sequence,
    }
}

/// Events on their way to one caller, at its pace.
struct Following {
    store: ImageStore,
    follower: Follower,
    ready: std::vec::IntoIter<Arc<Told>>,
}

impl Following {
    async fn next(&mut self) -> proto::EventsResponse {
        loop {
            if let Some(told) = self.ready.next() {
                return self.response(&told);
            }
            let batch = self.follower.next().await;
            if batch.missed > 0 {
                let missed = batch.missed;
                tracing::warn!(missed, "a slow follower missed events");
            }
            self.ready = batch.events.into_iter();
        }
    }

    fn response(&self, told: &Told) -> proto::EventsResponse {
        let event = &told.event;
        proto::EventsResponse {
            position: Some(position(&self.store, told.sequence)),
            event: Some(proto::StoreEvent {
                time: Some(wire::timestamp(told.at)),
                r#type: event.kind.name().to_owned(),
                action: event.action.clone().into_owned(),
                id: event.id.clone(),
                attributes: event.attributes.clone().into_iter().collect(),
            }),
        }
    }
}

fn check_event(event: CheckEvent) -> proto::CheckResponse {
    use proto::check_response::Event;
    let event = match event {
        CheckEvent::Progress {
            object,
            current,
            total,
        } => Event::Progress(proto::CheckProgress {
            object,
            current,
            total,
        }),
        CheckEvent::Finding(finding) => Event::Finding(proto::Finding {
            object: finding.object,
            problem: finding.problem,
            repaired: finding.repaired,
            needed_by: finding.needed_by,
        }),
    };
    proto::CheckResponse { event: Some(event) }
}

fn check_done(checked: Checked) -> proto::CheckResponse {
    let done = proto::CheckDone {
        objects: checked.objects,
        bytes: checked.bytes,
        findings: checked.findings,
        repaired: checked.repaired,
        finished: Some(wire::timestamp(jiff::Timestamp::now())),
    };
    proto::CheckResponse {
        event: Some(proto::check_response::Event::Done(done)),
    }
}

fn usage(account: Account) -> proto::DiskUsageResponse {
    proto::DiskUsageResponse {
        images: account.images.iter().map(image_usage).collect(),
        snapshots: account.snapshots.iter().map(snapshot_usage).collect(),
        owners: account.owners.into_iter().map(owner).collect(),
        total: account.total,
        layers_size: account.layers_size,
        volumes: account.volumes.iter().map(volume_usage).collect(),
    }
}

fn image_usage(usage: &ImageUse) -> proto::ImageUsage {
    proto::ImageUsage {
        image: Some(wire::image(&usage.image)),
        shared_size: usage.shared,
        unique_size: usage.unique,
        containers: usage.containers,
    }
}

fn snapshot_usage(usage: &SnapshotUse) -> proto::SnapshotUsage {
    proto::SnapshotUsage {
        container_id: usage.record.container.clone(),
        image_id: usage.record.image.to_string(),
        size: usage.size,
        image_size: usage.image_size,
    }
}

fn volume_usage(usage: &VolumeUsage) -> proto::VolumeUsage {
    proto::VolumeUsage {
        volume: Some(volumes::volume(&usage.volume)),
        size: usage.size,
    }
}

/// An account in messages of bounded size.
fn usage_parts(whole: proto::DiskUsageResponse) -> Vec<proto::DiskUsageResponse> {
    let mut parts = Parts {
        done: Vec::new(),
        part: proto::DiskUsageResponse {
            total: whole.total,
            layers_size: whole.layers_size,
            ..proto::DiskUsageResponse::default()
        },
        bytes: 0,
    };
    for image in whole.images {
        parts.room(bytes(&image)).images.push(image);
    }
    for snapshot in whole.snapshots {
        parts.room(bytes(&snapshot)).snapshots.push(snapshot);
    }
    for owner in whole.owners {
        parts.room(bytes(&owner)).owners.push(owner);
    }
    for volume in whole.volumes {
        parts.room(bytes(&volume)).volumes.push(volume);
    }
    parts.done.push(parts.part);
    parts.done
}

/// An account that is being cut.
struct Parts {
    done: Vec<proto::DiskUsageResponse>,
    part: proto::DiskUsageResponse,
    bytes: usize,
}

impl Parts {
    /// The message that takes an entry of so many bytes.
    fn room(&mut self, bytes: usize) -> &mut proto::DiskUsageResponse {
        if self.bytes > 0 && self.bytes + bytes > PAGE_BYTES {
            self.done.push(std::mem::take(&mut self.part));
            self.bytes = 0;
        }
        self.bytes += bytes;
        &mut self.part
    }
}

fn owner(owner: Owner) -> proto::Owner {
    let kind = match owner.kind {
        OwnerKind::Layer => proto::OwnerKind::Layer,
        OwnerKind::PackedLayer => proto::OwnerKind::PackedLayer,
        OwnerKind::Metadata => proto::OwnerKind::Metadata,
        OwnerKind::WritableLayer => proto::OwnerKind::WritableLayer,
        OwnerKind::Volume => proto::OwnerKind::Volume,
        OwnerKind::PartialDownload => proto::OwnerKind::PartialDownload,
        OwnerKind::Trash => proto::OwnerKind::Trash,
        OwnerKind::Index => proto::OwnerKind::Index,
        OwnerKind::InProgress => proto::OwnerKind::InProgress,
        OwnerKind::Store => proto::OwnerKind::Store,
        OwnerKind::Foreign => proto::OwnerKind::Foreign,
    };
    let freed_by = match owner.freed_by {
        FreedBy::Nothing => proto::FreedBy::Nothing,
        FreedBy::Prune => proto::FreedBy::Prune,
        FreedBy::ImagePrune => proto::FreedBy::ImagePrune,
        FreedBy::ImagePruneAll => proto::FreedBy::ImagePruneAll,
        FreedBy::ContainerRemoval => proto::FreedBy::ContainerRemoval,
        FreedBy::VolumePrune => proto::FreedBy::VolumePrune,
        FreedBy::VolumePruneAll => proto::FreedBy::VolumePruneAll,
    };
    proto::Owner {
        kind: kind.into(),
        name: owner.name,
        bytes: owner.bytes,
        kept_by: owner.kept_by,
        freed_by: freed_by.into(),
    }
}
