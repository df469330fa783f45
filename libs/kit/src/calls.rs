//! How long each call may take.
//!
//! Every method of every interface has a [`Class`] in one table, and every hop
//! (CLI to gateway, gateway to service, runtime to shim) takes its deadline from
//! it. A method without a class fails a test here, so that a new one cannot get
//! a deadline by accident.
//!
//! A deadline bounds the time until the answer begins. What comes after it, and
//! calls without a deadline, are bounded by the connection: a peer that does not
//! acknowledge a PING is given up (see [`crate::client`]), and so are all calls
//! on it.

use std::time::Duration;

/// What bounds a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Answers from memory, or after a few steps.
    Quick,
    /// Consists of several steps that have limits of their own, which add up to
    /// more than a quick call has.
    Steps,
    /// Moves, counts or removes content of any size, or waits as long as its
    /// caller says. No limit while the connection lives.
    Long,
    /// Goes on until its caller or its object ends. No limit while the
    /// connection lives.
    Endless,
}

/// Limit of a [`Class::Quick`] call.
pub const QUICK: Duration = Duration::from_secs(30);

/// Limit of a [`Class::Steps`] call.
pub const STEPS: Duration = Duration::from_secs(120);

impl Class {
    /// How long the answer may take to begin. `None`: as long as the connection
    /// lives.
    #[must_use]
    pub fn deadline(self) -> Option<Duration> {
        match self {
            Self::Quick => Some(QUICK),
            Self::Steps => Some(STEPS),
            Self::Long | Self::Endless => None,
        }
    }
}

/// The class of `method` ("List") of `service` ("gantry.gateway.v1.ContainerService").
/// `None`: it is not one of our interfaces.
#[must_use]
pub fn class(service: &str, method: &str) -> Option<Class> {
    use Class::{Endless, Long, Quick, Steps};
    Some(match service {
        "gantry.gateway.v1.ContainerService" => match method {
            "Kill" | "Resize" | "Pause" | "Unpause" | "Rename" | "Stats" | "Top" | "StatPath"
            | "Update" => Quick,
            "Start" => Steps,
            // Create copies the image's files into new volumes; List and Inspect
            // count files where sizes are asked for; Stop and what stops wait as
            // long as the caller says.
            "Create" | "List" | "Inspect" | "Stop" | "Restart" | "Remove" | "Commit" | "Diff"
            | "Export" | "CopyOut" | "CopyIn" | "Prune" => Long,
            "Run" | "Wait" | "Attach" | "Exec" | "Logs" | "Events" => Endless,
            _ => return None,
        },
        "gantry.gateway.v1.SystemService" => match method {
            "Version" | "Info" => Quick,
            "Check" => Long,
            _ => return None,
        },
        "gantry.image.v1.ImageService" => match method {
            "List" | "Inspect" | "Tag" | "Login" | "Search" => Quick,
            "Pull" | "Push" | "Import" | "Remove" | "CompareImages" => Long,
            _ => return None,
        },
        "gantry.image.v1.ArchiveService" => match method {
            "Save" | "Load" => Long,
            _ => return None,
        },
        "gantry.image.v1.SnapshotService" => match method {
            "Get" => Quick,
            "Prepare" | "Delete" | "ListSnapshots" | "Diff" | "Commit" | "Export" => Long,
            _ => return None,
        },
        "gantry.image.v1.StoreService" => match method {
            "LastEvent" => Quick,
            "DiskUsage" | "StreamDiskUsage" | "Prune" | "Check" => Long,
            "Events" => Endless,
            _ => return None,
        },
        "gantry.image.v1.VolumeService" => match method {
            "CreateVolume" | "ListVolumes" | "InspectVolume" => Quick,
            "RemoveVolume" | "PruneVolumes" => Long,
            _ => return None,
        },
        "gantry.network.v1.NetworkService" => match method {
            "CreateEndpoint" | "DeleteEndpoint" | "GetEndpoint" | "ListEndpoints"
            | "ListNetworks" => Quick,
            _ => return None,
        },
        "gantry.registry.v1.RegistryService" => match method {
            "Status" | "ListRepositories" | "ListTags" | "DeleteManifest" => Quick,
            "DeleteRepository" | "CollectGarbage" => Long,
            _ => return None,
        },
        "gantry.runtime.v1.RuntimeService" => match method {
            "Exec" | "Kill" | "Resize" | "Pause" | "Resume" | "Update" | "Stats" | "Pids"
            | "Get" | "List" | "StatPath" | "FindRuntime" => Quick,
            // Hooks and other OCI runtimes run in these, and what a dead shim
            // left is removed.
            "Create" | "Start" | "Delete" => Steps,
            "CopyOut" | "CopyIn" => Long,
            "Attach" | "Wait" | "Logs" | "Events" => Endless,
            _ => return None,
        },
        // The runtime bounds these more narrowly, and knows when a shim is stopped.
        "gantry.shim.v1.ShimService" => match method {
            "Create" | "Start" | "Exec" | "Kill" | "State" | "Resize" | "Pause" | "Resume"
            | "Update" | "Stats" | "Pids" | "Shutdown" | "ReleaseWindow" => Quick,
            "Attach" | "Wait" => Endless,
            _ => return None,
        },
        "grpc.health.v1.Health" => match method {
            "Check" | "List" => Quick,
            "Watch" => Endless,
            _ => return None,
        },
        "grpc.reflection.v1.ServerReflection" => Endless,
        _ => return None,
    })
}

/// The class of a call by its HTTP path, "/package.Service/Method". A method that
/// nobody knows, of a newer interface perhaps, is quick.
#[must_use]
pub fn class_of_path(path: &str) -> Class {
    let call = path.trim_start_matches('/').split_once('/');
    call.and_then(|(service, method)| class(service, method))
        .unwrap_or(Class::Quick)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// (service, method) of all interfaces.
    fn methods() -> Vec<(String, String)> {
        let set = FileDescriptorSet::decode(gantry_proto::DESCRIPTORS).unwrap();
        let mut all = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let service = format!("{}.{}", file.package(), service.name());
                    all.push((service, method.name().to_owned()));
                }
            }
        }
        all
    }

    #[test]
    fn every_method_of_every_interface_has_a_class() {
        let methods = methods();
        assert!(methods.len() > 90, "{methods:?}");
        let unclassified: Vec<_> = methods
            .iter()
            .filter(|(service, method)| class(service, method).is_none())
            .collect();
        assert!(unclassified.is_empty(), "{unclassified:?}");
    }

    #[test]
    fn a_method_that_streams_has_no_deadline() {
        let set = FileDescriptorSet::decode(gantry_proto::DESCRIPTORS).unwrap();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    if method.client_streaming() || method.server_streaming() {
                        let service = format!("{}.{}", file.package(), service.name());
                        let class = class(&service, method.name()).unwrap();
                        assert_eq!(class.deadline(), None, "{service}/{}", method.name());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_long_by_nature_has_no_deadline() {
        for path in [
            "/gantry.gateway.v1.ContainerService/Commit",
            "/gantry.gateway.v1.ContainerService/CopyIn",
            "/gantry.gateway.v1.ContainerService/Prune",
            "/gantry.gateway.v1.ContainerService/List",
            "/gantry.image.v1.SnapshotService/Commit",
            "/gantry.image.v1.SnapshotService/ListSnapshots",
            "/gantry.runtime.v1.RuntimeService/CopyIn",
        ] {
            assert_eq!(class_of_path(path), Class::Long, "{path}");
        }
        assert_eq!(class_of_path("/some.Newer/Call"), Class::Quick);
        assert_eq!(class_of_path("nonsense"), Class::Quick);
    }
}
