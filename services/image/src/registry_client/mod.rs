//! A client of registries: the OCI distribution API 1.1, which Docker's API v2 is a subset of.
//!
//! [`Client`] knows hosts: how they are reached, whom they trust, the tokens
//! they gave. [`Repository`] is one repository on one host for one user, and has
//! the verbs: manifests and blobs, down and up.
//!
//! **Whom to trust.** HTTPS with the system's authorities. A registry on this
//! machine, and one that the configuration declares insecure, is tried over
//! HTTPS with any certificate, and then over HTTP. Which of the two worked is
//! remembered for the host in that role, as it is configured: connections,
//! schemes and tokens of one role are never used for another, nor after the
//! configuration of the host has changed.
//!
//! **Credentials** go to their own host and to its token service, over HTTPS.
//! Plain HTTP carries them only to a host that is declared insecure as itself,
//! or is on this machine. An answer that came over HTTPS does not lead to plain
//! HTTP ([`RegistryError::Downgrade`]), unless to a host that is declared so.
//!
//! **The engine's own registry** (`gantry.localhost`) is reached on its Unix
//! socket, without credentials, and never over TCP. No other registry's answer
//! leads there.
//!
//! **Retries.** A request that failed for reasons that pass (a broken
//! connection, 429, 5xx) is sent again with growing pauses, or when the
//! registry asked to be called again. Bodies that break in the middle are
//! resumed by who reads them, who knows how much came.
//!
//! **Nothing hangs.** Connecting, waiting for an answer and waiting for the
//! next bytes each have a limit.
//!
//! **Where.** A registry may have mirrors, which are asked first; each host has a
//! [`site::Site`] that says how it is spoken to: from the configuration, or from
//! Docker's and containerd's directories.
//!
//! Limits at present: no proxies.

mod certs_dir;
mod challenge;
mod download;
mod error;
mod exchange;
mod hosts;
mod lists;
pub(crate) mod patience;
mod refusal;
mod site;
mod source;
mod token;
mod transport;
mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_credentials::CredentialsError;
use gantry_oci::Reference;

pub use download::BlobStream;
pub use error::RegistryError;
pub use gantry_credentials::Credentials;
pub use hosts::{HostConfig, Hosts, Mirror, OneOrMany};
pub use lists::Found;
pub use source::{SourceError, SourceStream};
pub use upload::{BlobSource, Upload};

use exchange::{Endpoint, EndpointKey, Target};
use hosts::{is_own, names};
use site::Site;
use token::TokenKey;

/// A client of all registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    hosts: Hosts,
    endpoints: Mutex<HashMap<EndpointKey, Endpoint>>,
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
    /// Nothing: only whether the user is let in.
    Login,
}

/// One repository on one host, for one user.
#[derive(Clone, Debug)]
pub struct Repository {
    client: Client,
    site: Site,
    name: String,
    access: Access,
    credentials: Option<Credentials>,
    mirror: bool,
    /// Another repository of the host that blobs are to be mounted from.
    mount_from: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is whole after every statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a host that is asked first is the reference's own registry, as
/// containerd's `hosts.toml` may well have it.
fn is_itself(site: &Site, reference: &Reference) -> bool {
    names(reference.domain()).contains(&site.host.as_str())
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

    /// Where the images of a reference are pushed to: its registry, or a host
    /// before it that takes pushes too.
    pub async fn repository(
        &self,
        reference: &Reference,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Repository, RegistryError> {
        let layout = self.shared.hosts.layout(reference)?;
        let mut sites = layout.mirrors.into_iter();
        match sites.find(|site| access == Access::Push && site.abilities.push) {
            Some(site) => {
                let credentials = credentials.filter(|_| is_itself(&site, reference));
                self.repository_at(site, reference, access, credentials)
                    .await
            }
            None => {
                self.repository_at(layout.registry, reference, access, credentials)
                    .await
            }
        }
    }

    /// Where an image can be pulled from: its registry's mirrors, and itself last.
    pub async fn sources(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Vec<Repository>, RegistryError> {
        let layout = self.shared.hosts.layout(reference)?;
        let mut sources = Vec::new();
        for mirror in layout.mirrors {
            if mirror.abilities.pull || mirror.abilities.resolve {
                // The caller's credentials are for the registry, and no business of a mirror's.
                let credentials = credentials
                    .clone()
                    .filter(|_| is_itself(&mirror, reference));
                let mut source = self
                    .repository_at(mirror, reference, Access::Pull, credentials)
                    .await?;
                source.mirror = true;
                sources.push(source);
            }
        }
        let registry = layout.registry;
        sources.push(
            self.repository_at(registry, reference, Access::Pull, credentials)
                .await?,
        );
        Ok(sources)
    }

    async fn repository_at(
        &self,
        site: Site,
        reference: &Reference,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Repository, RegistryError> {
        Ok(Repository {
            credentials: self.credentials(&site.host, credentials).await?,
            client: self.clone(),
            site,
            name: reference.name().as_str().to_owned(),
            access,
            mirror: false,
            mount_from: None,
        })
    }

    /// The caller's credentials, else those of the configuration.
    async fn credentials(
        &self,
        host: &str,
        given: Option<Credentials>,
    ) -> Result<Option<Credentials>, RegistryError> {
        if is_own(host) {
            return Ok(None);
        }
        if given.is_some() {
            return Ok(given);
        }
        match self.shared.hosts.credentials(host).await {
            Err(RegistryError::Credentials {
                host,
                source:
                    source @ (CredentialsError::HelperMissing { .. }
                    | CredentialsError::HelperTimeout { .. }
                    | CredentialsError::Helper { .. }),
            }) => {
                // Most of what is pulled needs none: that must not fail for a keychain.
                let error = gantry_kit::fault::chain(&source);
                tracing::warn!(%host, error, "the registry is asked without credentials");
                Ok(None)
            }
            found => found,
        }
    }

    /// The registry itself, and none of its repositories.
    async fn registry(
        &self,
        host: &str,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Repository, RegistryError> {
        Ok(Repository {
            client: self.clone(),
            credentials: self.credentials(host, credentials).await?,
            site: self.shared.hosts.site(host)?,
            name: String::new(),
            access,
            mirror: false,
            mount_from: None,
        })
    }

    /// Checks a user's credentials with a registry. What its token service gave
    /// to be kept in place of the password, if it gave something.
    pub async fn login(
        &self,
        host: &str,
        credentials: Credentials,
    ) -> Result<Option<String>, RegistryError> {
        let host = gantry_credentials::Server::new(host);
        if is_own(host.host()) {
            let host = host.host().to_owned();
            return Err(RegistryError::NoLogin { host });
        }
        let everything = self
            .registry(host.host(), Access::Login, Some(credentials))
            .await?;
        everything.log_in().await
    }
}

impl Repository {
    /// The host that is asked.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.site.host
    }

    /// Whether it has what another registry has, and is not that itself.
    #[must_use]
    pub const fn is_mirror(&self) -> bool {
        self.mirror
    }

    /// Whether it is asked what a tag stands for.
    #[must_use]
    pub const fn resolves_tags(&self) -> bool {
        self.site.abilities.resolve
    }

    /// Whether it is asked for content.
    #[must_use]
    pub const fn gives_content(&self) -> bool {
        self.site.abilities.pull
    }

    /// A path below the repository.
    fn target(&self, rest: &str) -> Target {
        let (base, name) = (&self.site.base, &self.name);
        let mut path = format!("{base}/{name}/{rest}");
        if let Some(namespace) = &self.site.namespace {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str("ns=");
            path.push_str(namespace);
        }
        Target::Path(path)
    }

    /// Lets blobs be mounted from another repository of the same host.
    #[must_use]
    pub fn mounting_from(mut self, repository: Option<String>) -> Self {
        self.mount_from = repository;
        self
    }
}
