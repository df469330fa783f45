//! The removal of images, on its way to the image service.
//!
//! An image that a running container was made from must stay, forced or not. The
//! image service knows which containers were made from it, and not which run; so
//! this one call is read here, told what runs, and passed on. All other calls of
//! the service are forwarded as they are.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use gantry_kit::client::{self, Client, MESSAGE_LIMIT};
use gantry_proto::image::v1 as wire;
use gantry_proto::image::v1::image_service_client::ImageServiceClient;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::engine::Engine;
use crate::error::Peer;
use crate::proxy::{Forward, ImageService, unanswered};

const REMOVE: &str = "/gantry.image.v1.ImageService/Remove";

/// Forwards the image service's calls, and tells a removal what runs.
#[derive(Clone, Debug)]
pub(crate) struct ImageRemoval {
    forward: Forward<ImageService>,
    engine: Arc<Engine>,
}

impl ImageRemoval {
    pub(crate) fn new(forward: Forward<ImageService>, engine: &Arc<Engine>) -> Self {
        Self {
            forward,
            engine: Arc::clone(engine),
        }
    }
}

impl NamedService for ImageRemoval {
    const NAME: &'static str = <Forward<ImageService> as NamedService>::NAME;
}

impl Service<Request<Body>> for ImageRemoval {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.forward.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != REMOVE {
            return self.forward.call(request);
        }
        let removal = Removal {
            client: self.forward.client(),
            engine: Arc::clone(&self.engine),
        };
        Box::pin(async move {
            let mut grpc =
                Grpc::new(ProstCodec::default()).max_decoding_message_size(MESSAGE_LIMIT);
            Ok(grpc.unary(removal, request).await)
        })
    }
}

struct Removal {
    client: Client,
    engine: Arc<Engine>,
}

impl UnaryService<wire::RemoveRequest> for Removal {
    type Response = wire::RemoveResponse;
    type Future = BoxFuture<'static, Result<tonic::Response<wire::RemoveResponse>, tonic::Status>>;

    fn call(&mut self, mut request: tonic::Request<wire::RemoveRequest>) -> Self::Future {
        let records = self.engine.roster.records();
        let running = records
            .iter()
            .filter(|record| record.state.is_shown_running());
        request.get_mut().running_containers =
            running.map(|record| record.id.to_string()).collect();
        let mut images = ImageServiceClient::new(self.client.clone());
        Box::pin(async move {
            let removed = images.remove(request).await;
            removed.map_err(|status| match client::is_unanswered(&status) {
                true => unanswered(Peer::Image, &status),
                false => status,
            })
        })
    }
}
