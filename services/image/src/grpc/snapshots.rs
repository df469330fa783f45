//! `SnapshotService`: writable layers of containers.

use gantry_kit::pages::{self, PageAsked, oldest_first};
use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::snapshot_service_server::SnapshotService;
use tonic::{Request, Response};

use super::{Answer, EventStream, ImageGrpc, volumes, wire};
use crate::ImageStore;
use crate::commit::CommitOptions;
use crate::error::ImageError;
use crate::snapshots::Snapshot;

#[tonic::async_trait]
impl SnapshotService for ImageGrpc {
    type DiffStream = EventStream<proto::DiffResponse>;
    type ExportStream = EventStream<proto::ExportResponse>;

    async fn prepare(
        &self,
        request: Request<proto::PrepareRequest>,
    ) -> Answer<proto::PrepareResponse> {
        let mut request = request.into_inner();
        let image = self.store.resolve(&request.image)?;
        let platform = request.platform.take();
        wire::check_platform(&image, platform, &request.image)?;
        let wishes = volumes::wishes(&mut request);
        let ephemeral = request.ephemeral;
        let alone = wishes.ask_nothing_of(&image);
        let work = move |store: &ImageStore| {
            store.prepare_with(&request.container_id, &request.image, ephemeral, &wishes)
        };
        let (image, snapshot, mounted) = if ephemeral && alone {
            // Nothing here waits for the disk: a trip to another thread would cost more.
            work(&self.store)?
        } else {
            self.with_store(work).await?
        };
        Ok(Response::new(proto::PrepareResponse {
            image: Some(wire::image(&image)),
            config: image.config_raw.clone(),
            rootfs: Some(wire::rootfs(&snapshot)),
            mounts: mounted.into_iter().map(volumes::mounted).collect(),
        }))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Answer<proto::GetResponse> {
        let snapshot = self
            .store
            .get_snapshot(&request.into_inner().container_id)?;
        Ok(Response::new(proto::GetResponse {
            snapshot: Some(wire::snapshot(&snapshot)),
        }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Answer<proto::DeleteResponse> {
        let request = request.into_inner();
        let deleted = self
            .with_store(move |store| {
                store.delete_snapshot_with(&request.container_id, request.remove_volumes)
            })
            .await?;
        Ok(Response::new(proto::DeleteResponse { deleted }))
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Answer<proto::ListSnapshotsResponse> {
        let request = request.into_inner();
        let asked = PageAsked {
            size: request.page_size,
            token: &request.page_token,
        };
        let place = |snapshot: &Snapshot| {
            oldest_first(
                snapshot.record.created.as_nanosecond(),
                &snapshot.record.container,
            )
        };
        let snapshots = self.store.list_snapshots();
        let mut page = pages::page(snapshots, asked, place, |found| wire::snapshot(&found));
        if request.page_token.is_empty() {
            // Nothing but their names is known, least of all their age.
            let damaged = self.store.damaged_snapshots().into_iter();
            page.entries
                .extend(damaged.map(|container_id| proto::Snapshot {
                    container_id,
                    ..proto::Snapshot::default()
                }));
        }
        Ok(Response::new(proto::ListSnapshotsResponse {
            snapshots: page.entries,
            next_page_token: page.next_token,
        }))
    }

    async fn diff(&self, request: Request<proto::DiffRequest>) -> Answer<Self::DiffStream> {
        let container = request.into_inner().container_id;
        // Said at once, and not as the first message of a stream.
        self.store.get_snapshot(&container)?;
        let changes = self.pieces(move |store, give| {
            store.diff(&container, &mut |changes| {
                let changes = changes.into_iter().map(wire::change).collect();
                give(proto::DiffResponse { changes })
            })
        });
        Ok(Response::new(changes))
    }

    async fn commit(
        &self,
        request: Request<proto::CommitRequest>,
    ) -> Answer<proto::CommitResponse> {
        let request = request.into_inner();
        let cancel = self.stopping.child_token();
        let _caller = cancel.clone().drop_guard();
        let options = CommitOptions {
            reference: Some(request.reference).filter(|text| !text.is_empty()),
            author: request.author,
            message: request.message,
            changes: request.changes,
            config: wire::container_config(&request.config)?,
            created: request.created.map(wire::time).transpose()?,
            cancel,
        };
        // On a task of its own, so that a commit whose caller is gone cleans up.
        let store = self.store.clone();
        let container = request.container_id;
        let committing = tokio::spawn(async move { store.commit(&container, &options).await });
        let image = committing
            .await
            .map_err(|_| ImageError::TaskLost { what: "a commit" })??;
        Ok(Response::new(proto::CommitResponse {
            image: Some(wire::image(&image)),
        }))
    }

    async fn export(&self, request: Request<proto::ExportRequest>) -> Answer<Self::ExportStream> {
        let container = request.into_inner().container_id;
        self.store.get_snapshot(&container)?;
        let chunks = self.pieces(move |store, give| {
            store.export(&container, |chunk| give(proto::ExportResponse { chunk }))
        });
        Ok(Response::new(chunks))
    }
}
