//! The image service: images and writable layers.

use std::collections::HashMap;

use futures::stream::{BoxStream, StreamExt as _};
use gantry_kit::client::{Client, MESSAGE_LIMIT};
use gantry_kit::journal::{Event, Kind};
use gantry_kit::pages::ANY_SIZE;
use gantry_oci::{ContainerConfig, ImageConfig};
use gantry_proto::image::v1 as wire;
use jiff::Timestamp;
use wire::image_service_client::ImageServiceClient;
use wire::snapshot_service_client::SnapshotServiceClient;
use wire::store_service_client::StoreServiceClient;

use super::refused;
use crate::container::{Image, Record, Rootfs};
use crate::error::{Error, Peer, Result};
use crate::wanted::{Found, Mount, MountKind, Wanted};
use crate::wire as common;

/// A writable layer over an image.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub image: Image,
    pub rootfs: Rootfs,
    /// The container's mounts, with what is to be mounted for each, and those
    /// that the image adds.
    pub mounts: Vec<Mount>,
}

/// Bytes of a container's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of its writable layer.
    pub writable: u64,
    /// And of its image.
    pub whole: u64,
}

/// One message of a pull's progress, passed on as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct PullProgress(pub Box<wire::PullResponse>);

/// Some of what a container changed, passed on as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes(pub wire::DiffResponse);

pub type ChangeStream = BoxStream<'static, Result<Changes>>;

/// Some bytes of an archive, passed on as they came.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk(pub wire::ExportResponse);

pub type ChunkStream = BoxStream<'static, Result<Chunk>>;

/// What an image made of a container is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct NewImage {
    /// Empty: it gets no name.
    pub reference: String,
    pub author: String,
    pub message: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// What the container ran with.
    pub config: ContainerConfig,
}

/// The image that was made, passed on as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed(pub wire::CommitResponse);

impl Committed {
    #[must_use]
    pub fn image_id(&self) -> String {
        let image = self.0.image.as_ref();
        image.map(|image| image.id.clone()).unwrap_or_default()
    }
}

/// Credentials for a registry, passed on as they came.
#[derive(Clone, PartialEq)]
pub struct RegistryAuth(pub wire::RegistryAuth);

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryAuth({})", self.0.username)
    }
}

/// A place in what the image service tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePosition {
    /// Of the service: it begins anew when it is started.
    pub life: String,
    pub sequence: u64,
}

impl From<wire::EventPosition> for ImagePosition {
    fn from(wire: wire::EventPosition) -> Self {
        Self {
            life: wire.life,
            sequence: wire.sequence,
        }
    }
}

/// One thing that the image service tells.
#[derive(Clone, Debug)]
pub struct ImageTold {
    /// Where the stream is, behind it.
    pub position: ImagePosition,
    /// None: it only says where the stream begins, or tells of something that is
    /// not known here.
    pub event: Option<(Timestamp, Event)>,
}

pub type ImageEvents = BoxStream<'static, Result<ImageTold>>;

fn told(wire: wire::EventsResponse) -> ImageTold {
    let event = wire.event.and_then(|event| {
        let at = event.time.as_ref().map(common::timestamp)?;
        let event = Event {
            kind: Kind::parse(&event.r#type)?,
            action: event.action.into(),
            id: event.id,
            attributes: event.attributes.into_iter().collect(),
        };
        Some((at, event))
    });
    ImageTold {
        position: wire.position.unwrap_or_default().into(),
        event,
    }
}

#[derive(Clone, Debug)]
pub struct Images {
    images: ImageServiceClient<Client>,
    snapshots: SnapshotServiceClient<Client>,
    store: StoreServiceClient<Client>,
}

fn volume_mount(mount: &Mount) -> wire::VolumeMount {
    wire::VolumeMount {
        volume: mount.source.clone(),
        target: mount.target.clone(),
        no_copy: mount.volume_no_copy,
        subpath: mount.subpath.clone(),
        driver: mount.volume_driver.clone(),
        options: mount.volume_options.clone().into_iter().collect(),
        labels: mount.volume_labels.clone().into_iter().collect(),
        anonymous: mount.anonymous,
        must_exist: mount.volume_must_exist,
    }
}

/// The mounts that were asked for with what is to be mounted for each; what was
/// not asked for is a volume of the image.
fn with_found(mut mounts: Vec<Mount>, prepared: Vec<wire::PreparedMount>) -> Vec<Mount> {
    for part in prepared {
        let asked = |mount: &&mut Mount| {
            mount.target == part.target
                && mount.found.is_none()
                && matches!(mount.kind, MountKind::Volume | MountKind::Image)
        };
        let found = Found {
            volume: part.volume,
            driver: part.driver,
            mountpoint: part.mountpoint,
            kind: part.r#type,
            source: part.source,
            options: part.options,
            layers: part.layers,
            image_id: part.image_id,
        };
        match mounts.iter_mut().find(asked) {
            Some(mount) => {
                mount.anonymous = part.anonymous;
                mount.found = Some(found);
            }
            None => mounts.push(Mount {
                kind: MountKind::Volume,
                target: part.target,
                anonymous: part.anonymous,
                found: Some(found),
                ..Mount::default()
            }),
        }
    }
    mounts
}

fn error(status: &tonic::Status) -> Error {
    refused(Peer::Image, status)
}

impl Images {
    pub(super) fn new(channel: &Client) -> Self {
        Self {
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            snapshots: SnapshotServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            store: StoreServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
        }
    }

    /// Puts a writable layer over the image that a container names, and makes
    /// and fills the volumes that it mounts.
    ///
    /// # Errors
    /// The image is not in the store (IMAGE_NOT_FOUND), or the service fails.
    pub async fn prepare(&self, record: &Record) -> Result<Prepared> {
        let wanted = &record.wanted;
        let mounts = record.mounts();
        let of = |kind| {
            mounts
                .iter()
                .filter(move |mount: &&Mount| mount.kind == kind)
        };
        let others = mounts.iter();
        let others = others.filter(|m| matches!(m.kind, MountKind::Bind | MountKind::Tmpfs));
        let answer = self
            .snapshots
            .clone()
            .prepare(wire::PrepareRequest {
                container_id: record.id.to_string(),
                image: wanted.image.clone(),
                platform: wanted.platform.as_ref().map(common::to_platform),
                ephemeral: wanted.auto_remove,
                volumes: of(MountKind::Volume).map(volume_mount).collect(),
                images: of(MountKind::Image)
                    .map(|mount| wire::ImageMount {
                        image: mount.source.clone(),
                        target: mount.target.clone(),
                        subpath: mount.subpath.clone(),
                    })
                    .collect(),
                image_volumes: true,
                other_targets: others.map(|mount| mount.target.clone()).collect(),
            })
            .await
            .map_err(|status| error(&status))?
            .into_inner();
        let config = ImageConfig::parse(&answer.config)
            .map_err(|problem| Error::invalid("image configuration", problem.to_string()))?;
        Ok(Prepared {
            image: Image {
                id: answer.image.unwrap_or_default().id,
                config: config.config,
            },
            rootfs: common::rootfs(answer.rootfs.unwrap_or_default()),
            mounts: with_found(mounts.to_vec(), answer.mounts),
        })
    }

    /// Removes a container's writable layer, if there is one; with `volumes`
    /// also its anonymous volumes that no other container uses.
    ///
    /// # Errors
    /// The service fails.
    pub async fn delete(&self, id: &str, volumes: bool) -> Result<()> {
        let request = wire::DeleteRequest {
            container_id: id.to_owned(),
            remove_volumes: volumes,
        };
        let answer = self.snapshots.clone().delete(request).await;
        answer.map(|_deleted| ()).map_err(|status| error(&status))
    }

    /// Makes an image of a container.
    ///
    /// # Errors
    /// A wish is not usable, or the service fails.
    pub async fn commit(&self, id: &str, new: NewImage) -> Result<Committed> {
        let config = serde_json::to_vec(&new.config)
            .map_err(|problem| Error::invalid("image configuration", problem.to_string()))?;
        let request = wire::CommitRequest {
            container_id: id.to_owned(),
            reference: new.reference,
            author: new.author,
            message: new.message,
            changes: new.changes,
            config: config.into(),
            created: None,
        };
        let answer = self.snapshots.clone().commit(request).await;
        let answer = answer.map_err(|status| error(&status))?;
        Ok(Committed(answer.into_inner()))
    }

    /// What a container changed in its files.
    ///
    /// # Errors
    /// The service fails.
    pub async fn diff(&self, id: &str) -> Result<ChangeStream> {
        let request = wire::DiffRequest {
            container_id: id.to_owned(),
        };
        let answer = self.snapshots.clone().diff(request).await;
        let changes = answer.map_err(|status| error(&status))?.into_inner();
        let changes = changes.map(|some| some.map(Changes).map_err(|status| error(&status)));
        Ok(changes.boxed())
    }

    /// A container's whole file system, as a tar.
    ///
    /// # Errors
    /// The service fails.
    pub async fn export(&self, id: &str) -> Result<ChunkStream> {
        let request = wire::ExportRequest {
            container_id: id.to_owned(),
        };
        let answer = self.snapshots.clone().export(request).await;
        let chunks = answer.map_err(|status| error(&status))?.into_inner();
        let chunks = chunks.map(|chunk| chunk.map(Chunk).map_err(|status| error(&status)));
        Ok(chunks.boxed())
    }

    /// Owners of all writable layers.
    ///
    /// # Errors
    /// The service fails.
    pub async fn snapshots(&self) -> Result<Vec<String>> {
        let mut client = self.snapshots.clone();
        let mut request = wire::ListSnapshotsRequest {
            page_size: ANY_SIZE,
            ..wire::ListSnapshotsRequest::default()
        };
        let mut owners = Vec::new();
        loop {
            let answer = client.list_snapshots(request.clone()).await;
            let page = answer.map_err(|status| error(&status))?.into_inner();
            owners.extend(page.snapshots.into_iter().map(|found| found.container_id));
            if page.next_page_token.is_empty() {
                return Ok(owners);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// The sizes of all containers' files, by their ids. Takes a look at the disk.
    ///
    /// # Errors
    /// The service fails.
    pub async fn sizes(&self) -> Result<HashMap<String, Sizes>> {
        let mut store = self.store.clone();
        let answer = store.stream_disk_usage(wire::DiskUsageRequest {}).await;
        let mut parts = answer.map_err(|status| error(&status))?.into_inner();
        let mut all = HashMap::new();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|status| error(&status))?;
            all.extend(part.snapshots.into_iter().map(|usage| {
                let sizes = Sizes {
                    writable: usage.size,
                    whole: usage.size + usage.image_size,
                };
                (usage.container_id, sizes)
            }));
        }
        Ok(all)
    }

    /// What happens to images and volumes from a place on.
    ///
    /// # Errors
    /// The service fails.
    pub async fn events(&self, after: Option<ImagePosition>) -> Result<ImageEvents> {
        let after = after.map(|after| wire::EventPosition {
            life: after.life,
            sequence: after.sequence,
        });
        let request = wire::EventsRequest { after };
        let answer = self.store.clone().events(request).await;
        let events = answer.map_err(|status| error(&status))?.into_inner();
        Ok(events
            .map(|message| message.map(told).map_err(|status| error(&status)))
            .boxed())
    }

    /// Where the last event is.
    ///
    /// # Errors
    /// The service fails.
    pub async fn last_event(&self) -> Result<ImagePosition> {
        let request = wire::LastEventRequest {};
        let answer = self.store.clone().last_event(request).await;
        let answer = answer.map_err(|status| error(&status))?;
        Ok(answer.into_inner().position.unwrap_or_default().into())
    }

    /// Id of the image that a name stands for. None: there is none.
    ///
    /// # Errors
    /// The service fails.
    pub async fn id_of(&self, reference: &str) -> Result<Option<String>> {
        let request = wire::InspectRequest {
            reference: reference.to_owned(),
            platform: None,
        };
        match self.images.clone().inspect(request).await {
            Ok(answer) => Ok(answer.into_inner().image.map(|image| image.id)),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(error(&status)),
        }
    }

    /// How many images there are.
    ///
    /// # Errors
    /// The service fails.
    pub async fn count(&self) -> Result<usize> {
        let mut client = self.images.clone();
        let mut request = wire::ListRequest {
            page_size: ANY_SIZE,
            ..wire::ListRequest::default()
        };
        let mut count = 0;
        loop {
            let answer = client.list(request.clone()).await;
            let page = answer.map_err(|status| error(&status))?.into_inner();
            count += page.images.len();
            if page.next_page_token.is_empty() {
                return Ok(count);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Pulls the image that `wanted` names.
    ///
    /// # Errors
    /// The pull is refused at once.
    pub async fn pull(
        &self,
        wanted: &Wanted,
        auth: Option<RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress>>> {
        let request = wire::PullRequest {
            reference: wanted.image.clone(),
            platform: wanted.platform.as_ref().map(common::to_platform),
            auth: auth.map(|auth| auth.0),
            ..wire::PullRequest::default()
        };
        let answer = self.images.clone().pull(request).await;
        let progress = answer.map_err(|status| error(&status))?.into_inner();
        Ok(progress
            .map(|message| match message {
                Ok(message) => Ok(PullProgress(Box::new(message))),
                Err(status) => Err(error(&status)),
            })
            .boxed())
    }
}
