//! Where the engine is, and one channel to it.
//!
//! The gateway's socket answers for all services that a client needs. The
//! channel connects at the first call: a verb that fails before costs nothing.

use std::path::{Path, PathBuf};

use gantry_kit::client::{self, ANSWER_LIMIT, Client, MESSAGE_LIMIT};
use gantry_kit::paths::Paths;
use gantry_proto::gateway::v1::container_service_client::ContainerServiceClient;
use gantry_proto::gateway::v1::system_service_client::SystemServiceClient;
use gantry_proto::image::v1::archive_service_client::ArchiveServiceClient;
use gantry_proto::image::v1::image_service_client::ImageServiceClient;
use gantry_proto::image::v1::store_service_client::StoreServiceClient;
use gantry_proto::image::v1::volume_service_client::VolumeServiceClient;
use gantry_proto::network::v1::network_service_client::NetworkServiceClient;
use gantry_sys::unix_socket;

use crate::exit::Failure;

/// The engine that a command speaks to.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    socket: PathBuf,
    client: Client,
}

impl Engine {
    /// Has to be called inside the async runtime.
    pub(crate) fn at(socket: PathBuf) -> Self {
        let client = client::connect_gateway(&socket);
        Self { socket, client }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn containers(&self) -> ContainerServiceClient<Client> {
        ContainerServiceClient::new(self.client.clone()).max_decoding_message_size(ANSWER_LIMIT)
    }

    pub(crate) fn system(&self) -> SystemServiceClient<Client> {
        SystemServiceClient::new(self.client.clone())
    }

    pub(crate) fn images(&self) -> ImageServiceClient<Client> {
        ImageServiceClient::new(self.client.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Whole images go past the gateway where they can: forwarding them costs as
    /// much as reading them.
    pub(crate) fn archives(&self) -> ArchiveServiceClient<Client> {
        let client = match image_socket(&self.socket) {
            Some(socket) => client::connect_gateway(&socket),
            None => self.client.clone(),
        };
        ArchiveServiceClient::new(client).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn store(&self) -> StoreServiceClient<Client> {
        StoreServiceClient::new(self.client.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn volumes(&self) -> VolumeServiceClient<Client> {
        VolumeServiceClient::new(self.client.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn networks(&self) -> NetworkServiceClient<Client> {
        NetworkServiceClient::new(self.client.clone())
    }
}

/// The socket of the image service beside the gateway's, if somebody listens
/// there: else it is the gateway's to say what is wrong.
fn image_socket(gateway: &Path) -> Option<PathBuf> {
    if gateway.file_name()? != "gateway.sock" {
        return None;
    }
    let socket = gateway.with_file_name("image.sock");
    unix_socket::connect(&socket).ok().map(|_listens| socket)
}

/// The gateway's socket: the one of `--host`, else the one below `--root`, else
/// the machine's.
pub(crate) fn socket(host: Option<&str>, paths: &Paths) -> Result<PathBuf, Failure> {
    let Some(host) = host else {
        return Ok(paths.socket("gateway"));
    };
    match host.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err(Failure::usage(format!(
            "host {host:?} is not of the form unix:///PATH"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn archives_go_to_the_image_service_where_it_is_beside_the_gateway() {
        let directory = tempfile::tempdir().unwrap();
        let gateway = directory.path().join("gateway.sock");
        assert_eq!(image_socket(&gateway), None);
        let image = directory.path().join("image.sock");
        let listener = UnixListener::bind(&image).unwrap();
        assert_eq!(image_socket(&gateway), Some(image.clone()));
        assert_eq!(image_socket(&directory.path().join("other.sock")), None);
        drop(listener);
        assert!(image.exists());
        assert_eq!(image_socket(&gateway), None);
    }

    #[test]
    fn a_host_is_the_path_of_a_socket() {
        let paths = Paths::system();
        assert_eq!(
            socket(Some("unix:///x/g.sock"), &paths).unwrap(),
            Path::new("/x/g.sock")
        );
        assert_eq!(
            socket(None, &paths).unwrap(),
            Path::new("/run/gantry/gateway.sock")
        );
        for bad in ["tcp://1.2.3.4:1", "/x", "unix://x"] {
            assert!(socket(Some(bad), &paths).is_err(), "{bad}");
        }
    }
}
