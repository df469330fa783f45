//! A client of registries: the OCI distribution API 1.1, which Docker's API v2 is a subset of.
//!
//! [`Client`] knows hosts: how they are reached, whom they trust, the tokens
//! they gave. [`Repository`] is one repository on one host for one user, and has
//! the verbs: manifests and blobs, down and up.
//!
//! **Whom to trust.** HTTPS with the system's authorities. A registry on this
//! machine, and one that the configuration declares insecure, is tried over
//! HTTPS with any certificate, and then over HTTP. What worked is remembered.
//!
//! **Retries.** A request that failed for reasons that pass (a broken
//! connection, 429, 5xx) is sent again with growing pauses, or when the
//! registry asked to be called again. Bodies that break in the middle are
//! resumed by who reads them, who knows how much came.
//!
//! **Nothing hangs.** Connecting, waiting for an answer and waiting for the
//! next bytes each have a limit.
//!
//! Limits at present: no client certificates, no proxies, no credential
//! helpers (nothing is ever executed).

mod challenge;
mod download;
mod error;
mod exchange;
mod hosts;
mod source;
mod token;
mod transport;
mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_oci::Reference;

pub use download::BlobStream;
pub use error::RegistryError;
pub use hosts::{Credentials, HostConfig, Hosts};
pub use source::{SourceError, SourceStream};
pub use upload::{BlobSource, Upload};

use exchange::Endpoint;
use token::TokenKey;

/// A client of all registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    hosts: Hosts,
    endpoints: Mutex<HashMap<String, Endpoint>>,
    tokens: Mutex<HashMap<TokenKey, token::Token>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("hosts", &self.hosts)
            .finish()
    }
}

/// What is going to be done in a repository: tokens are given for it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Access {
    Pull,
    Push,
}

/// One repository on one host, for one user.
#[derive(Clone, Debug)]
pub struct Repository {
    client: Client,
    host: String,
    name: String,
    access: Access,
    credentials: Option<Credentials>,
    /// Another repository of the host that blobs are to be mounted from.
    mount_from: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is whole after every statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// A client with this configuration. Connects to nobody yet.
    #[must_use]
    pub fn new(hosts: Hosts) -> Self {
        Self {
            shared: Arc::new(Shared {
                hosts,
                endpoints: Mutex::default(),
                tokens: Mutex::default(),
            }),
        }
    }

    /// The repository of a reference, for pushing.
    pub fn repository(
        &self,
        reference: &Reference,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Repository, RegistryError> {
        self.repository_at(reference.api_host(), reference, access, credentials)
    }

    /// Where an image can be pulled from: its registry's mirrors, and itself last.
    pub fn sources(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Vec<Repository>, RegistryError> {
        let host = reference.api_host();
        let mut sources = Vec::new();
        for mirror in self.shared.hosts.table(host).mirrors {
            // The caller's credentials are for the registry, and no business of a mirror's.
            sources.push(self.repository_at(&mirror, reference, Access::Pull, None)?);
        }
        sources.push(self.repository_at(host, reference, Access::Pull, credentials)?);
        Ok(sources)
    }

    fn repository_at(
        &self,
        host: &str,
        reference: &Reference,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Repository, RegistryError> {
        let credentials = match credentials {
            Some(credentials) => Some(credentials),
            None => self.shared.hosts.credentials(host)?,
        };
        Ok(Repository {
            client: self.clone(),
            host: host.to_owned(),
            name: reference.name().as_str().to_owned(),
            access,
            credentials,
            mount_from: None,
        })
    }

    /// Checks a user's credentials with a registry.
    pub async fn login(&self, host: &str, credentials: Credentials) -> Result<(), RegistryError> {
        let host = if host.is_empty() || host == gantry_oci::reference::DEFAULT_DOMAIN {
            hosts::DOCKER_HUB_API
        } else {
            host
        };
        let everything = Repository {
            client: self.clone(),
            host: host.to_owned(),
            name: String::new(),
            access: Access::Pull,
            credentials: Some(credentials),
            mount_from: None,
        };
        everything.ping().await
    }
}

impl Repository {
    /// The host that is asked.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Lets blobs be mounted from another repository of the same host.
    #[must_use]
    pub fn mounting_from(mut self, repository: Option<String>) -> Self {
        self.mount_from = repository;
        self
    }
}
