//! Forwards the calls of other services' interfaces, so that a client needs to
//! know one socket.
//!
//! A call is passed on as HTTP/2: path, headers (deadline and trace context
//! among them), body and trailers untouched and streamed, so that no message is
//! read here and a new call needs no line here. The one exception is the removal
//! of images ([`crate::image_removal`]): only here is it known what runs. Back-pressure is HTTP/2's own:
//! neither side is read faster than the other takes. A service that does not
//! answer in the time of the call's class, or breaks off in the middle of an
//! answer, becomes a typed error that names it.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use gantry_kit::client::{self, Client};
use gantry_kit::fault::Fault;
use gantry_kit::paths::Paths;
use gantry_proto::image::v1::{
    archive_service_server, image_service_server, snapshot_service_server, store_service_server,
    volume_service_server,
};
use gantry_proto::network::v1::network_service_server;
use gantry_proto::registry::v1::registry_service_server;
use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;

use crate::engine::Engine;
use crate::error::{Error, Peer};
use crate::image_removal::ImageRemoval;
use crate::peers::cause;

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
    client: Client,
    service: PhantomData<F>,
}

impl<F: Forwarded> Forward<F> {
    fn new(paths: &Paths) -> Self {
        Self {
            client: client::forward(&paths.socket(F::OWNER.name())),
            service: PhantomData,
        }
    }

    /// The connection to the service.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
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
        let answer = self.client.call(request);
        Box::pin(async move {
            Ok(match answer.await {
                Ok(response) => response.map(|body| {
                    Body::new(Answer {
                        owner: F::OWNER,
                        body,
                        over: false,
                    })
                }),
                Err(problem) => unanswered(F::OWNER, &problem).into_http(),
            })
        })
    }
}

/// The body of a service's answer. Where it breaks off, the caller gets a status
/// that says so, and not a stream that is reset for a reason of HTTP/2.
#[derive(Debug)]
struct Answer {
    owner: Peer,
    body: Body,
    /// It broke off: nothing comes any more.
    over: bool,
}

impl http_body::Body for Answer {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let problem = match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Err(problem)) => problem,
            frame => return Poll::Ready(frame),
        };
        self.over = true;
        let mut trailers = HeaderMap::new();
        let broken = unanswered(self.owner, &problem);
        Poll::Ready(Some(match broken.add_header(&mut trailers) {
            Ok(()) => Ok(http_body::Frame::trailers(trailers)),
            Err(status) => Err(status),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A call that its service did not answer, or did not answer to the end.
pub(crate) fn unanswered(owner: Peer, problem: &Status) -> Status {
    let problem = cause(problem);
    let name = owner.name();
    let error = Error::Unanswered {
        peer: owner,
        problem: problem.clone(),
    };
    Fault::new(
        Code::Unavailable,
        "gantry.gateway",
        "SERVICE_UNAVAILABLE",
        error.to_string(),
    )
    .with("service", name)
    .with("problem", problem)
    .into()
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    /// A body that breaks off.
    struct Broken;

    impl http_body::Body for Broken {
        type Data = bytes::Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Status>>> {
            Poll::Ready(Some(Err(Status::unavailable("connection reset"))))
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_ends_with_the_services_name() {
        let mut answer = Answer {
            owner: Peer::Image,
            body: Body::new(Broken),
            over: false,
        };
        let mut next = std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context));
        let trailers = (&mut next).await.unwrap().unwrap().into_trailers().unwrap();
        assert!(next.await.is_none());
        let fault = Fault::from_status(&Status::from_header_map(&trailers).unwrap());
        assert!(fault.is("SERVICE_UNAVAILABLE"));
        assert_eq!(fault.metadata["service"], "image");
        assert!(fault.message.contains("connection reset"), "{fault}");
        assert!(answer.is_end_stream());
    }
}
