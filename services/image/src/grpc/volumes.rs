//! `VolumeService`: volumes by their names. Containers come to them through
//! `SnapshotService`.

use gantry_kit::pages::{self, PageAsked};
use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::volume_service_server::VolumeService;
use tonic::{Request, Response};

use super::{Answer, ImageGrpc, wire};
use crate::volumes::{
    Backing, ImageWish, LOCAL, Mounted, NewVolume, Part, Volume, VolumeWish, Wishes,
};

#[tonic::async_trait]
impl VolumeService for ImageGrpc {
    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Answer<proto::CreateVolumeResponse> {
        let request = request.into_inner();
        let new = NewVolume {
            name: request.name,
            driver: request.driver,
            options: request.options.into_iter().collect(),
            labels: request.labels.into_iter().collect(),
        };
        let made = self.with_store(move |store| store.create_volume(&new));
        let made = made.await?;
        Ok(Response::new(proto::CreateVolumeResponse {
            volume: Some(volume(&made)),
        }))
    }

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Answer<proto::ListVolumesResponse> {
        let request = request.into_inner();
        let filters: Vec<_> = request.filters.into_iter().map(wire::filter).collect();
        let volumes = self.store.list_volumes(&filters)?;
        let asked = PageAsked {
            size: request.page_size,
            token: &request.page_token,
        };
        let place = |volume: &Volume| volume.record.name.clone();
        let page = pages::page(volumes, asked, place, |found| volume(&found));
        Ok(Response::new(proto::ListVolumesResponse {
            volumes: page.entries,
            next_page_token: page.next_token,
        }))
    }

    async fn inspect_volume(
        &self,
        request: Request<proto::InspectVolumeRequest>,
    ) -> Answer<proto::InspectVolumeResponse> {
        let found = self.store.volume(&request.into_inner().name)?;
        Ok(Response::new(proto::InspectVolumeResponse {
            volume: Some(volume(&found)),
        }))
    }

    async fn remove_volume(
        &self,
        request: Request<proto::RemoveVolumeRequest>,
    ) -> Answer<proto::RemoveVolumeResponse> {
        let request = request.into_inner();
        let removed = self
            .with_store(move |store| store.remove_volume(&request.name, request.force))
            .await?;
        Ok(Response::new(proto::RemoveVolumeResponse { removed }))
    }

    async fn prune_volumes(
        &self,
        request: Request<proto::PruneVolumesRequest>,
    ) -> Answer<proto::PruneVolumesResponse> {
        let request = request.into_inner();
        let filters: Vec<_> = request.filters.into_iter().map(wire::filter).collect();
        let pruned = self
            .with_store(move |store| store.prune_volumes(request.all, &filters))
            .await?;
        Ok(Response::new(proto::PruneVolumesResponse {
            deleted: pruned.deleted,
            reclaimed: pruned.reclaimed,
        }))
    }
}

pub(super) fn volume(volume: &Volume) -> proto::Volume {
    let record = &volume.record;
    proto::Volume {
        name: record.name.clone(),
        driver: LOCAL.to_owned(),
        options: record.options.clone().into_iter().collect(),
        labels: record.labels.clone().into_iter().collect(),
        created: Some(wire::timestamp(record.created)),
        mountpoint: wire::text(&volume.mountpoint),
        anonymous: record.anonymous,
        used_by: volume.used_by.clone(),
    }
}

/// What a container wants besides its root.
pub(super) fn wishes(request: &mut proto::PrepareRequest) -> Wishes {
    let volumes = std::mem::take(&mut request.volumes).into_iter();
    let images = std::mem::take(&mut request.images).into_iter();
    Wishes {
        volumes: volumes
            .map(|mount| VolumeWish {
                volume: NewVolume {
                    name: mount.volume,
                    driver: mount.driver,
                    options: mount.options.into_iter().collect(),
                    labels: mount.labels.into_iter().collect(),
                },
                target: mount.target,
                no_copy: mount.no_copy,
                subpath: mount.subpath,
                anonymous: mount.anonymous,
                must_exist: mount.must_exist,
            })
            .collect(),
        images: images
            .map(|mount| ImageWish {
                image: mount.image,
                target: mount.target,
                subpath: mount.subpath,
            })
            .collect(),
        image_volumes: request.image_volumes,
        other_targets: std::mem::take(&mut request.other_targets),
    }
}

pub(super) fn mounted(mounted: Mounted) -> proto::PreparedMount {
    let target = mounted.target;
    match mounted.part {
        Part::Volume {
            name,
            anonymous,
            mountpoint,
            backing,
        } => {
            let (kind, source, options) = match backing {
                Backing::Directory => ("bind", wire::text(&mountpoint), Vec::new()),
                Backing::Tmpfs { options } => ("tmpfs", String::new(), options),
                Backing::Bind { device, options } => ("bind", wire::text(&device), options),
            };
            proto::PreparedMount {
                target,
                volume: name,
                anonymous,
                mountpoint: wire::text(&mountpoint),
                r#type: kind.to_owned(),
                source,
                options,
                driver: LOCAL.to_owned(),
                ..Default::default()
            }
        }
        Part::Image { id, layers } => proto::PreparedMount {
            target,
            r#type: "overlay".to_owned(),
            layers: layers.iter().map(|path| wire::text(path)).collect(),
            image_id: id.to_string(),
            ..Default::default()
        },
    }
}
