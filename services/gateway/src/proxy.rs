//! Forwards the calls of other services' interfaces, so that a client needs to
//! know one socket.
//!
//! A call is passed on as HTTP/2: path, headers (deadline and trace context
//! among them), body and trailers untouched and streamed, so that no message is
//! read here and a new call needs no line here. The one exception is the removal
//! of images ([`crate::image_removal`]): only here is it known what runs. Back-pressure is HTTP/2's own:
//! neither side is read faster than the other takes. A service that does not
//! answer becomes a typed error.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use gantry_kit::client;
use gantry_kit::fault::Fault;
use gantry_kit::paths::Paths;
use gantry_proto::image::v1::{
    archive_service_server, image_service_server, snapshot_service_server, store_service_server,
    volume_service_server,
};
use gantry_proto::network::v1::network_service_server;
use gantry_proto::registry::v1::registry_service_server;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt as _};

use crate::engine::Engine;
use crate::error::Peer;
use crate::image_removal::ImageRemoval;

/// A service whose calls are forwarded.
pub trait Forwarded: Clone + Send + Sync + 'static {
    /// Its full name.
    const NAME: &'static str;
    const OWNER: Peer;
}

/// Forwards `ImageService`, but for what [`ImageRemoval`] reads.
#[derive(Clone, Copy, Debug)]
pub struct ImageService;

impl Forwarded for ImageService {
    const NAME: &'static str = image_service_server::SERVICE_NAME;
    const OWNER: Peer = Peer::Image;
}

macro_rules! forwarded {
    ($($marker:ident: $name:expr => $owner:expr),* $(,)?) => {
        $(
            #[doc = concat!("Forwards `", stringify!($marker), "`.")]
            #[derive(Clone, Copy, Debug)]
            pub struct $marker;

            impl Forwarded for $marker {
                const NAME: &'static str = $name;
                const OWNER: Peer = $owner;
            }
        )*

        /// Full names of the services that are forwarded.
        pub const NAMES: &[&str] = &[ImageService::NAME, $($name),*];

        /// Adds all of them to `routes`.
        #[must_use]
        pub fn forward(routes: Routes, engine: &Arc<Engine>) -> Routes {
            let paths = &engine.paths;
            routes
                .add_service(ImageRemoval::new(Forward::new(paths), engine))
                $(.add_service(Forward::<$marker>::new(paths)))*
        }
    };
}

forwarded! {
    SnapshotService: snapshot_service_server::SERVICE_NAME => Peer::Image,
    ArchiveService: archive_service_server::SERVICE_NAME => Peer::Image,
    StoreService: store_service_server::SERVICE_NAME => Peer::Image,
    VolumeService: volume_service_server::SERVICE_NAME => Peer::Image,
    NetworkService: network_service_server::SERVICE_NAME => Peer::Network,
    RegistryService: registry_service_server::SERVICE_NAME => Peer::Registry,
}

/// Forwards one service's calls to its owner.
#[derive(Clone, Debug)]
pub struct Forward<F> {
    channel: Channel,
    service: PhantomData<F>,
}

impl<F: Forwarded> Forward<F> {
    fn new(paths: &Paths) -> Self {
        Self {
            channel: client::channel(&paths.socket(F::OWNER.name())),
            service: PhantomData,
        }
    }

    /// The connection to the service.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl<F: Forwarded> NamedService for Forward<F> {
    const NAME: &'static str = F::NAME;
}

impl<F: Forwarded> Service<Request<Body>> for Forward<F> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each call waits for the channel by itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.channel.clone();
        Box::pin(async move {
            Ok(match channel.oneshot(request).await {
                Ok(response) => response,
                Err(problem) => unanswered(F::OWNER, &problem).into_http(),
            })
        })
    }
}

pub(crate) fn unanswered(owner: Peer, problem: &tonic::transport::Error) -> Status {
    let mut last: &dyn std::error::Error = problem;
    while let Some(source) = last.source() {
        last = source;
    }
    let name = owner.name();
    let message = format!("the {name} service does not answer ({last}); see whether it runs");
    Fault::new(
        Code::Unavailable,
        "gantry.gateway",
        "SERVICE_UNAVAILABLE",
        message,
    )
    .with("service", name)
    .with("problem", last)
    .into()
}
