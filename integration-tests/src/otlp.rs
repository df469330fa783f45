//! An OTLP receiver (gRPC) that keeps the spans it is sent.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::http::runtime;

/// One span, as far as the tests look.
#[derive(Clone, Debug)]
pub struct Span {
    /// The process it came from: "gantry-image".
    pub service: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty: the root of its trace.
    pub parent: String,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Mutex<Vec<Span>>,
    arrived: Condvar,
}

/// A receiver on a port of its own.
#[derive(Debug)]
pub struct Receiver {
    /// "http://127.0.0.1:PORT".
    pub endpoint: String,
    kept: Arc<Kept>,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// # Errors
    /// No port is free.
    pub fn start() -> Result<Self> {
        let kept = Arc::<Kept>::default();
        let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let served = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(Arc::clone(&kept))))
            .add_service(MetricsServiceServer::new(Collector(Arc::clone(&kept))))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = runtime().spawn(async move {
            // It ends with the task.
            let _ = served.await;
        });
        Ok(Self {
            endpoint,
            kept,
            server,
        })
    }

    /// All spans so far, once `enough` says so, or at the deadline.
    pub fn spans(&self, deadline: Duration, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let end = Instant::now() + deadline;
        let mut spans = lock(&self.kept.spans);
        while !enough(&spans) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            spans = self
                .kept
                .arrived
                .wait_timeout(spans, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        spans.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Collector(Arc<Kept>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut arrived = Vec::new();
        for resource in request.into_inner().resource_spans {
            let service = resource
                .resource
                .iter()
                .flat_map(|resource| &resource.attributes)
                .find(|attribute| attribute.key == "service.name")
                .and_then(|attribute| attribute.value.as_ref()?.value.clone());
            let service = match service {
                Some(Value::StringValue(name)) => name,
                _ => String::new(),
            };
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                arrived.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: hex::encode(span.trace_id),
                    id: hex::encode(span.span_id),
                    parent: hex::encode(span.parent_span_id),
                });
            }
        }
        lock(&self.0.spans).extend(arrived);
        self.0.arrived.notify_all();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
