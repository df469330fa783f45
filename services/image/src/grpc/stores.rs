//! `StoreService`: the store as a whole.

use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::store_service_server::StoreService;
use tonic::{Request, Status};

use super::{Answer, EventStream, ImageGrpc};

#[tonic::async_trait]
impl StoreService for ImageGrpc {
    type CheckStream = EventStream<proto::CheckResponse>;

    async fn disk_usage(
        &self,
        _request: Request<proto::DiskUsageRequest>,
    ) -> Answer<proto::DiskUsageResponse> {
        Err(Status::unimplemented("disk usage"))
    }

    async fn prune(&self, _request: Request<proto::PruneRequest>) -> Answer<proto::PruneResponse> {
        Err(Status::unimplemented("prune"))
    }

    async fn check(&self, _request: Request<proto::CheckRequest>) -> Answer<Self::CheckStream> {
        Err(Status::unimplemented("check"))
    }
}
