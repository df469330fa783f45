//! Errors of the store as `google.rpc` statuses: one match, with every case.

use gantry_kit::fault::{Fault, chain};
use tonic::{Code, Status};

use crate::archive::ArchiveError;
use crate::error::ImageError;
use crate::registry_client::{RegistryError, SourceError};

const DOMAIN: &str = "gantry.image";

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        let message = chain(&error);
        let full = error.is_out_of_space();
        let fault = |code: Code, reason: &str| Fault::new(code, DOMAIN, reason, message.clone());
        if full {
            return fault(Code::ResourceExhausted, "DISK_FULL").into();
        }
        match &error {
            ImageError::Reference(_) => fault(Code::InvalidArgument, "INVALID_REFERENCE"),
            ImageError::DigestAsName { reference } => {
                fault(Code::InvalidArgument, "INVALID_REFERENCE").with("reference", reference)
            }
            ImageError::NotFound { reference } => {
                fault(Code::NotFound, "IMAGE_NOT_FOUND").with("reference", reference)
            }
            ImageError::Ambiguous { reference } => {
                fault(Code::InvalidArgument, "AMBIGUOUS_ID").with("reference", reference)
            }
            ImageError::NoPlatform {
                reference,
                platform,
                ..
            } => fault(Code::NotFound, "NO_SUCH_PLATFORM")
                .with("reference", reference)
                .with("platform", platform),
            // The image that was asked for is not here, whatever else is.
            ImageError::OtherPlatform {
                reference, wanted, ..
            } => fault(Code::NotFound, "IMAGE_NOT_FOUND")
                .with("reference", reference)
                .with("platform", wanted),
            ImageError::Unusable { reference, .. } | ImageError::Config { reference, .. } => {
                fault(Code::FailedPrecondition, "IMAGE_UNUSABLE").with("reference", reference)
            }
            ImageError::Registry(source) => registry(source, &message),
            ImageError::Layer { digest, .. } => {
                fault(Code::DataLoss, "LAYER_UNUSABLE").with("layer", digest)
            }
            ImageError::LayerContent { digest, .. } => {
                fault(Code::DataLoss, "LAYER_UNUSABLE").with("layer", digest)
            }
            ImageError::LayerMissing { reference, .. } => {
                fault(Code::DataLoss, "LAYER_MISSING").with("reference", reference)
            }
            ImageError::Content(_) => fault(Code::Internal, "CONTENT_STORE"),
            ImageError::Index(_) => fault(Code::Internal, "INDEX"),
            ImageError::Io { path, .. } => {
                fault(Code::Internal, "DISK").with("path", path.display())
            }
            ImageError::InUse {
                reference,
                container,
                ..
            } => fault(Code::FailedPrecondition, "IMAGE_IN_USE")
                .with("reference", reference)
                .with("container", container),
            ImageError::SeveralNames { id, .. } => {
                fault(Code::FailedPrecondition, "IMAGE_HAS_SEVERAL_NAMES").with("id", id)
            }
            ImageError::HasChildren { id, .. } => {
                fault(Code::FailedPrecondition, "IMAGE_HAS_CHILDREN").with("id", id)
            }
            ImageError::SnapshotExists { container } => {
                fault(Code::AlreadyExists, "SNAPSHOT_EXISTS").with("container", container)
            }
            ImageError::SnapshotNotFound { container } => {
                fault(Code::NotFound, "SNAPSHOT_NOT_FOUND").with("container", container)
            }
            ImageError::DamagedSnapshot { container } => {
                fault(Code::FailedPrecondition, "DAMAGED_SNAPSHOT").with("container", container)
            }
            ImageError::Files { of, .. } => {
                fault(Code::Internal, "FILES_UNREADABLE").with("object", of)
            }
            ImageError::Pack { of, .. } => {
                fault(Code::FailedPrecondition, "FILES_NOT_ARCHIVABLE").with("object", of)
            }
            ImageError::NewConfig { .. } => fault(Code::InvalidArgument, "INVALID_CONFIG"),
            ImageError::VolumeNotFound { name } => {
                fault(Code::NotFound, "VOLUME_NOT_FOUND").with("volume", name)
            }
            ImageError::VolumeName { text } => {
                fault(Code::InvalidArgument, "INVALID_VOLUME_NAME").with("volume", text)
            }
            ImageError::VolumeInUse { name, containers } => {
                fault(Code::FailedPrecondition, "VOLUME_IN_USE")
                    .with("volume", name)
                    .with("containers", containers.join(","))
            }
            ImageError::VolumeExists { name } => {
                fault(Code::AlreadyExists, "VOLUME_EXISTS").with("volume", name)
            }
            ImageError::VolumeDriver { driver } => {
                fault(Code::InvalidArgument, "NO_SUCH_VOLUME_DRIVER").with("driver", driver)
            }
            ImageError::VolumeOptions { .. } => {
                fault(Code::InvalidArgument, "INVALID_VOLUME_OPTIONS")
            }
            ImageError::VolumeMount { target, .. } => {
                fault(Code::InvalidArgument, "INVALID_VOLUME_MOUNT").with("target", target)
            }
            ImageError::VolumeCopy { volume, .. } => {
                fault(Code::Internal, "VOLUME_NOT_FILLED").with("volume", volume)
            }
            ImageError::Field { field, .. } => {
                fault(Code::InvalidArgument, "INVALID_FIELD").with("field", field)
            }
            ImageError::Source { url, source } => source_of_import(url, source, &message),
            ImageError::ContainerId { text } => {
                fault(Code::InvalidArgument, "INVALID_CONTAINER_ID").with("container", text)
            }
            ImageError::Change { instruction, .. } => {
                fault(Code::InvalidArgument, "INVALID_CHANGE").with("instruction", instruction)
            }
            ImageError::Missing { field } => {
                fault(Code::InvalidArgument, "MISSING_FIELD").with("field", field)
            }
            ImageError::Filter { key, value, .. } => fault(Code::InvalidArgument, "INVALID_FILTER")
                .with("key", key)
                .with("value", value),
            ImageError::Archive(source) => archive(source, &message),
            ImageError::NotARepository { reference } => {
                fault(Code::InvalidArgument, "INVALID_REFERENCE").with("reference", reference)
            }
            ImageError::PackedMissing { reference, layer } => {
                fault(Code::FailedPrecondition, "PACKED_LAYER_MISSING")
                    .with("reference", reference)
                    .with("layer", layer)
            }
            ImageError::WrongPacking {
                reference, blob, ..
            } => fault(Code::DataLoss, "PACKED_LAYER_WRONG")
                .with("reference", reference)
                .with("layer", blob),
            ImageError::SearchLimit { limit, .. } => {
                fault(Code::InvalidArgument, "INVALID_LIMIT").with("limit", limit)
            }
            ImageError::Stream { .. } => fault(Code::Aborted, "STREAM_BROKEN"),
            ImageError::Cancelled { .. } => fault(Code::Cancelled, "CANCELLED"),
            ImageError::TaskLost { .. } => fault(Code::Internal, "TASK_LOST"),
        }
        .into()
    }
}

fn archive(error: &ArchiveError, message: &str) -> Fault {
    let fault = |code: Code, reason: &str| Fault::new(code, DOMAIN, reason, message);
    match error {
        ArchiveError::Empty
        | ArchiveError::Damaged(_)
        | ArchiveError::NoList
        | ArchiveError::NoImage { .. }
        | ArchiveError::TooOld => fault(Code::InvalidArgument, "ARCHIVE_UNUSABLE"),
        ArchiveError::Entry { path, .. }
        | ArchiveError::Missing { path, .. }
        | ArchiveError::Digest { path, .. }
        | ArchiveError::Document { path, .. } => {
            fault(Code::InvalidArgument, "ARCHIVE_UNUSABLE").with("entry", path)
        }
        ArchiveError::Limit { what, limit } => fault(Code::InvalidArgument, "ARCHIVE_TOO_LARGE")
            .with("what", what)
            .with("limit", limit),
        ArchiveError::NotPacked { reference, digest } => {
            fault(Code::FailedPrecondition, "LAYER_NOT_PACKED")
                .with("reference", reference)
                .with("layer", digest)
        }
    }
}

fn source_of_import(url: &str, error: &SourceError, message: &str) -> Fault {
    let fault = |code: Code, reason: &str| Fault::new(code, DOMAIN, reason, message);
    match error {
        SourceError::Url { .. } => fault(Code::InvalidArgument, "INVALID_URL"),
        SourceError::Status { status, .. } => {
            fault(Code::FailedPrecondition, "SOURCE_REFUSED").with("status", status.as_u16())
        }
        SourceError::Circle | SourceError::Redirect { .. } => {
            fault(Code::FailedPrecondition, "SOURCE_REDIRECTS")
        }
        SourceError::Unreachable { .. }
        | SourceError::Broken { .. }
        | SourceError::Stalled { .. }
        | SourceError::Client(_) => fault(Code::Unavailable, "SOURCE_UNREACHABLE"),
    }
    .with("url", url)
}

fn registry(error: &RegistryError, message: &str) -> Fault {
    let fault = |code: Code, reason: &str| Fault::new(code, DOMAIN, reason, message);
    match error {
        RegistryError::NotFound { host, what, .. } => fault(Code::NotFound, "NOT_IN_REGISTRY")
            .with("registry", host)
            .with("object", what),
        RegistryError::Denied { host, what, .. } => {
            fault(Code::PermissionDenied, "REGISTRY_DENIED")
                .with("registry", host)
                .with("object", what)
        }
        RegistryError::Unreachable { host, .. } | RegistryError::NotHttps { host, .. } => {
            fault(Code::Unavailable, "REGISTRY_UNREACHABLE").with("registry", host)
        }
        RegistryError::NotRunning { host, .. } => {
            fault(Code::Unavailable, "OWN_REGISTRY_NOT_RUNNING").with("registry", host)
        }
        RegistryError::NoLogin { host } => {
            fault(Code::FailedPrecondition, "OWN_REGISTRY_NO_LOGIN").with("registry", host)
        }
        RegistryError::InClear { host, to, .. } | RegistryError::Downgrade { host, to, .. } => {
            fault(Code::FailedPrecondition, "REGISTRY_IN_CLEAR")
                .with("registry", host)
                .with("to", to)
        }
        RegistryError::Broken { host, .. } | RegistryError::Stalled { host, .. } => {
            fault(Code::Unavailable, "REGISTRY_CONNECTION_LOST").with("registry", host)
        }
        RegistryError::Busy { host, .. } => {
            fault(Code::Unavailable, "REGISTRY_BUSY").with("registry", host)
        }
        RegistryError::Unexpected { host, status, .. } => {
            fault(Code::FailedPrecondition, "REGISTRY_REFUSED")
                .with("registry", host)
                .with("status", status.as_u16())
        }
        RegistryError::Malformed { host, .. } | RegistryError::Size { host, .. } => {
            fault(Code::DataLoss, "REGISTRY_ANSWER_UNUSABLE").with("registry", host)
        }
        RegistryError::Manifest { host, what, .. } => fault(Code::DataLoss, "MANIFEST_UNUSABLE")
            .with("registry", host)
            .with("object", what),
        RegistryError::NotAnImage { what, kind } => fault(Code::FailedPrecondition, "NOT_AN_IMAGE")
            .with("object", what)
            .with("kind", kind),
        RegistryError::Certificate { host, path, .. } => {
            fault(Code::FailedPrecondition, "CERTIFICATE_UNUSABLE")
                .with("registry", host)
                .with("path", path)
        }
        RegistryError::Tls(_) => fault(Code::Internal, "TLS"),
        RegistryError::Configuration { host, .. } => {
            fault(Code::FailedPrecondition, "REGISTRY_CONFIGURATION").with("registry", host)
        }
        RegistryError::HostsFile { path, .. } => {
            fault(Code::FailedPrecondition, "REGISTRY_CONFIGURATION").with("path", path)
        }
        RegistryError::Credentials { host, .. } => {
            fault(Code::FailedPrecondition, "CREDENTIALS_UNREADABLE").with("registry", host)
        }
        RegistryError::Local { .. } => fault(Code::Internal, "CONTENT_STORE"),
    }
}
