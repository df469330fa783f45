//! Domain types as messages, and messages as domain types.

use std::path::Path;

use gantry_oci::{ContainerConfig, Platform, Reference};
use gantry_proto::image::v1 as proto;
use gantry_proto::types::v1 as types;

use crate::error::ImageError;
use crate::files::{Change, ChangeKind};
use crate::image::Image;
use crate::list::Filter;
use crate::pull::{Event, LayerState, Pulled};
use crate::push::Pushed;
use crate::registry_client::{Credentials, Found};
use crate::snapshots::Snapshot;

pub(super) fn platform(wire: types::Platform) -> Platform {
    Platform::new(&wire.os, &wire.architecture, Some(&wire.variant))
}

/// Whether an image suits the platform that was asked for, if one was.
pub(super) fn check_platform(
    image: &Image,
    wanted: Option<types::Platform>,
    reference: &str,
) -> Result<(), ImageError> {
    match wanted.map(platform) {
        Some(wanted) => image.check_platform(&wanted, reference),
        None => Ok(()),
    }
}

pub(super) fn credentials(wire: proto::RegistryAuth) -> Option<Credentials> {
    if !wire.identity_token.is_empty() {
        return Some(Credentials::Identity {
            username: wire.username,
            token: wire.identity_token,
        });
    }
    (!wire.username.is_empty()).then_some(Credentials::Password {
        username: wire.username,
        password: wire.password,
    })
}

pub(super) fn filter(wire: proto::Filter) -> Filter {
    Filter {
        key: wire.key,
        value: wire.value,
    }
}

pub(super) fn timestamp(time: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// A point in time that a caller gave.
pub(super) fn time(wire: prost_types::Timestamp) -> Result<jiff::Timestamp, ImageError> {
    jiff::Timestamp::new(wire.seconds, wire.nanos).map_err(|error| ImageError::Field {
        field: "created",
        reason: error.to_string(),
    })
}

/// The `config` object of a configuration. Empty: absent.
pub(super) fn container_config(json: &[u8]) -> Result<Option<ContainerConfig>, ImageError> {
    if json.is_empty() {
        return Ok(None);
    }
    ContainerConfig::parse(json)
        .map(Some)
        .map_err(|source| ImageError::NewConfig { source })
}

pub(super) fn change(change: Change) -> proto::Change {
    let kind = match change.kind {
        ChangeKind::Modified => proto::ChangeKind::Modified,
        ChangeKind::Added => proto::ChangeKind::Added,
        ChangeKind::Deleted => proto::ChangeKind::Deleted,
    };
    proto::Change {
        path: String::from_utf8_lossy(&change.path).into_owned(),
        kind: kind.into(),
    }
}

pub(super) fn image(image: &Image) -> proto::Image {
    let platform = image.platform();
    proto::Image {
        id: image.id().to_string(),
        tags: image.familiar_tags(),
        digests: image
            .record
            .digests
            .iter()
            .map(Reference::familiar)
            .collect(),
        manifest_digest: image.record.manifest.to_string(),
        platform: Some(types::Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant.unwrap_or_default(),
        }),
        created: image.created().map(timestamp),
        size: image.size(),
        labels: image.config.config.labels.clone().into_iter().collect(),
        layers: image
            .record
            .layers
            .iter()
            .map(|layer| proto::ImageLayer {
                diff_id: layer.diff_id.to_string(),
                digest: layer.descriptor.digest.to_string(),
                size: layer.size,
                packed_size: layer.descriptor.size,
            })
            .collect(),
    }
}

pub(super) fn text(path: &Path) -> String {
    // The store's root is configured as text and all names below it are ours.
    path.to_string_lossy().into_owned()
}

pub(super) fn rootfs(snapshot: &Snapshot) -> types::Rootfs {
    types::Rootfs {
        lower_dirs: snapshot.lower.iter().map(|path| text(path)).collect(),
        upper_dir: text(&snapshot.upper),
        work_dir: text(&snapshot.work),
    }
}

pub(super) fn snapshot(snapshot: &Snapshot) -> proto::Snapshot {
    proto::Snapshot {
        container_id: snapshot.record.container.clone(),
        image_id: snapshot.record.image.to_string(),
        rootfs: Some(rootfs(snapshot)),
        created: Some(timestamp(snapshot.record.created)),
    }
}

const fn layer_state(state: LayerState) -> proto::LayerState {
    match state {
        LayerState::Waiting => proto::LayerState::Waiting,
        LayerState::Downloading => proto::LayerState::Downloading,
        LayerState::Unpacking => proto::LayerState::Unpacking,
        LayerState::Complete => proto::LayerState::Complete,
        LayerState::Exists => proto::LayerState::Exists,
        LayerState::Mounted => proto::LayerState::Mounted,
        LayerState::Uploading => proto::LayerState::Uploading,
    }
}

pub(super) fn layer_progress(event: Event) -> Option<proto::LayerProgress> {
    match event {
        Event::Layer {
            digest,
            state,
            current,
            total,
        } => Some(proto::LayerProgress {
            digest: digest.to_string(),
            state: layer_state(state).into(),
            current,
            total,
        }),
        Event::Resolved { .. } | Event::Pulled(_) | Event::Pushed(_) => None,
    }
}

pub(super) fn pull_event(event: Event) -> Option<proto::PullResponse> {
    let event = match event {
        Event::Resolved {
            reference,
            digest,
            layers,
        } => proto::pull_response::Event::Resolved(proto::Resolved {
            reference: reference.canonical(),
            digest: digest.to_string(),
            layers: layers
                .into_iter()
                .map(|layer| proto::LayerSummary {
                    digest: layer.digest.to_string(),
                    size: layer.size,
                })
                .collect(),
        }),
        layer @ Event::Layer { .. } => proto::pull_response::Event::Layer(layer_progress(layer)?),
        Event::Pulled(pulled) => return Some(pull_done(&pulled)),
        Event::Pushed(_) => return None,
    };
    Some(proto::PullResponse { event: Some(event) })
}

pub(super) fn pull_done(pulled: &Pulled) -> proto::PullResponse {
    proto::PullResponse {
        event: Some(proto::pull_response::Event::Done(proto::PullDone {
            image: Some(image(&pulled.image)),
            digest: pulled.digest.to_string(),
            updated: pulled.updated,
            bytes_downloaded: pulled.bytes,
        })),
    }
}

pub(super) fn push_event(event: Event) -> Option<proto::PushResponse> {
    if let Event::Pushed(pushed) = &event {
        return Some(push_done(pushed));
    }
    Some(proto::PushResponse {
        event: Some(proto::push_response::Event::Layer(layer_progress(event)?)),
    })
}

pub(super) fn push_done(pushed: &Pushed) -> proto::PushResponse {
    proto::PushResponse {
        event: Some(proto::push_response::Event::Done(proto::PushDone {
            reference: pushed.reference.canonical(),
            digest: pushed.digest.to_string(),
            size: pushed.size,
            bytes_uploaded: pushed.bytes,
        })),
    }
}

pub(super) fn found(found: Found) -> proto::SearchResult {
    proto::SearchResult {
        name: found.name,
        description: found.description,
        stars: found.stars,
        official: found.official,
        automated: found.automated,
    }
}
