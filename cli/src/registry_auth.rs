//! The person's credentials for registries, which go along with each call that
//! may need them: the engine is somebody else, and has its own.

use gantry_credentials::{Credentials, CredentialsError, DockerConfig, Server};
use gantry_kit::fault::chain;
use gantry_oci::Reference;
use gantry_oci::reference::OWN_REGISTRY;
use gantry_proto::image::v1::RegistryAuth;

/// The person's file of credentials.
pub(crate) fn file() -> Result<DockerConfig, CredentialsError> {
    DockerConfig::read(&DockerConfig::personal_path()?)
}

/// The registry that an image's name names.
fn server_of(image: &str) -> Option<Server> {
    let reference: Reference = image.parse().ok()?;
    Some(Server::new(reference.domain()))
}

/// Credentials for the registry of an image, if the person has some.
pub(crate) async fn for_image(image: &str) -> Option<RegistryAuth> {
    for_server(&server_of(image)?).await
}

/// Credentials for the registry that a term of a search names, if it does.
pub(crate) async fn for_term(term: &str) -> Option<RegistryAuth> {
    let host = match term.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "",
    };
    for_server(&Server::new(host)).await
}

/// What cannot be had is said, and done without: most images need no credentials.
async fn for_server(server: &Server) -> Option<RegistryAuth> {
    if is_own(server) {
        return None;
    }
    let found = match file() {
        Ok(config) => config.find(server).await,
        Err(CredentialsError::Homeless) => Ok(None),
        Err(error) => Err(error),
    };
    match found {
        Ok(found) => found.map(wire),
        Err(error) => {
            eprintln!("gantry: warning: {}; going on without", chain(&error));
            None
        }
    }
}

/// Whether a program has to be run for the credentials of an image's registry,
/// which costs more than to find out whether they are needed.
pub(crate) fn has_helper(image: &str) -> bool {
    let helper = || {
        let server = server_of(image).filter(|server| !is_own(server))?;
        file().ok()?.helper(&server).ok()?
    };
    helper().is_some()
}

/// Whether it is the engine's own registry, which takes no credentials.
fn is_own(server: &Server) -> bool {
    server.host().eq_ignore_ascii_case(OWN_REGISTRY)
}

pub(crate) fn wire(credentials: Credentials) -> RegistryAuth {
    match credentials {
        Credentials::Password { username, password } => RegistryAuth {
            username,
            password,
            identity_token: String::new(),
        },
        Credentials::Identity { username, token } => RegistryAuth {
            username,
            password: String::new(),
            identity_token: token,
        },
    }
}
