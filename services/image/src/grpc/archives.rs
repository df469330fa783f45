//! `ArchiveService`: images in tar archives.

use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::archive_service_server::ArchiveService;
use tonic::{Request, Status, Streaming};

use super::{Answer, EventStream, ImageGrpc};

#[tonic::async_trait]
impl ArchiveService for ImageGrpc {
    type SaveStream = EventStream<proto::SaveResponse>;
    type LoadStream = EventStream<proto::LoadResponse>;

    async fn save(&self, _request: Request<proto::SaveRequest>) -> Answer<Self::SaveStream> {
        Err(Status::unimplemented("save"))
    }

    async fn load(
        &self,
        _request: Request<Streaming<proto::LoadRequest>>,
    ) -> Answer<Self::LoadStream> {
        Err(Status::unimplemented("load"))
    }
}
