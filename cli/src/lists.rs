//! Lists of the engine, read page by page to their end.

use gantry_kit::client::Client;
use gantry_kit::pages::ANY_SIZE;
use gantry_proto::gateway::v1::container_service_client::ContainerServiceClient;
use gantry_proto::gateway::v1::{ContainerSummary, ListRequest};
use gantry_proto::image::v1 as image;
use image::image_service_client::ImageServiceClient;
use image::store_service_client::StoreServiceClient;
use image::volume_service_client::VolumeServiceClient;
use tonic::Status;

/// Containers that `request` asks for.
pub(crate) async fn containers(
    mut client: ContainerServiceClient<Client>,
    mut request: ListRequest,
) -> Result<Vec<ContainerSummary>, Status> {
    request.page_size = ANY_SIZE;
    let mut all = Vec::new();
    loop {
        let page = client.list(request.clone()).await?.into_inner();
        all.extend(page.containers);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

/// Images that `request` asks for.
pub(crate) async fn images(
    mut client: ImageServiceClient<Client>,
    mut request: image::ListRequest,
) -> Result<Vec<image::Image>, Status> {
    request.page_size = ANY_SIZE;
    let mut all = Vec::new();
    loop {
        let page = client.list(request.clone()).await?.into_inner();
        all.extend(page.images);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

/// Volumes that `request` asks for.
pub(crate) async fn volumes(
    mut client: VolumeServiceClient<Client>,
    mut request: image::ListVolumesRequest,
) -> Result<Vec<image::Volume>, Status> {
    request.page_size = ANY_SIZE;
    let mut all = Vec::new();
    loop {
        let page = client.list_volumes(request.clone()).await?.into_inner();
        all.extend(page.volumes);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

/// The account of the disk, put together again.
pub(crate) async fn disk_usage(
    mut client: StoreServiceClient<Client>,
) -> Result<image::DiskUsageResponse, Status> {
    let answer = client.stream_disk_usage(image::DiskUsageRequest {}).await?;
    let mut parts = answer.into_inner();
    let mut whole = image::DiskUsageResponse::default();
    while let Some(part) = parts.message().await? {
        whole.images.extend(part.images);
        whole.snapshots.extend(part.snapshots);
        whole.owners.extend(part.owners);
        whole.volumes.extend(part.volumes);
        whole.total += part.total;
        whole.layers_size += part.layers_size;
    }
    Ok(whole)
}
