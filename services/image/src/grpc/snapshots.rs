//! `SnapshotService`: writable layers of containers.

use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::snapshot_service_server::SnapshotService;
use tonic::{Request, Response, Status};

use super::{Answer, EventStream, ImageGrpc, wire};
use crate::ImageStore;

#[tonic::async_trait]
impl SnapshotService for ImageGrpc {
    type DiffStream = EventStream<proto::DiffResponse>;
    type ExportStream = EventStream<proto::ExportResponse>;

    async fn prepare(
        &self,
        request: Request<proto::PrepareRequest>,
    ) -> Answer<proto::PrepareResponse> {
        let request = request.into_inner();
        let image = self.store.resolve(&request.image)?;
        wire::check_platform(&image, request.platform, &request.image)?;
        let work = move |store: &ImageStore| {
            store.prepare(&request.container_id, &request.image, request.ephemeral)
        };
        let (image, snapshot) = if request.ephemeral {
            // Nothing here waits for the disk: a trip to another thread would cost more.
            work(&self.store)?
        } else {
            self.with_store(work).await?
        };
        Ok(Response::new(proto::PrepareResponse {
            image: Some(wire::image(&image)),
            config: image.config_raw.clone(),
            rootfs: Some(wire::rootfs(&snapshot)),
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
            .with_store(move |store| store.delete_snapshot(&request.container_id))
            .await?;
        Ok(Response::new(proto::DeleteResponse { deleted }))
    }

    async fn list_snapshots(
        &self,
        _request: Request<proto::ListSnapshotsRequest>,
    ) -> Answer<proto::ListSnapshotsResponse> {
        let snapshots = self.store.list_snapshots();
        Ok(Response::new(proto::ListSnapshotsResponse {
            snapshots: snapshots.iter().map(wire::snapshot).collect(),
        }))
    }

    async fn diff(&self, _request: Request<proto::DiffRequest>) -> Answer<Self::DiffStream> {
        Err(Status::unimplemented("diff"))
    }

    async fn commit(
        &self,
        _request: Request<proto::CommitRequest>,
    ) -> Answer<proto::CommitResponse> {
        Err(Status::unimplemented("commit"))
    }

    async fn export(&self, _request: Request<proto::ExportRequest>) -> Answer<Self::ExportStream> {
        Err(Status::unimplemented("export"))
    }
}
