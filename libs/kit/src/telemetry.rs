//! Logs, OpenTelemetry export, and the trace context that every call carries.
//!
//! Logs go to standard error, a line per event. Spans and metrics go to an OTLP
//! receiver where one is configured. A call carries the W3C trace context
//! (`traceparent`) of its caller, so that one `gantry run` is one trace over all
//! services: [`inject`] writes it, [`ServerTrace`] reads it.

use std::env;
use std::io::IsTerminal as _;
use std::mem;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use opentelemetry::metrics::Histogram;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, TracerProvider as _};
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::config::{Engine, LogFormat};
use crate::incoming::Connection;

/// Variable that names the OTLP receiver where the configuration does not
/// (OpenTelemetry specification, "OTLP exporter configuration").
const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// How long the last spans may take to leave when a process ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Telemetry that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("{filter:?} is not a log filter; say a level, as in log = \"info\"")]
    Filter {
        filter: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("cannot export to the OTLP endpoint {endpoint:?}")]
    Exporter {
        endpoint: String,
        source: opentelemetry_otlp::ExporterBuildError,
    },
}

/// Keeps export alive; what is still queued leaves when it is dropped or, where
/// the caller can wait, at [`Telemetry::flush`].
#[derive(Debug, Default)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Sends what is queued, and ends export. Blocks for at most two seconds;
    /// call it outside the async runtime's own threads.
    pub fn flush(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(traces) = self.traces.take() {
            let _late = traces.shutdown_with_timeout(FLUSH_LIMIT);
        }
        if let Some(metrics) = self.metrics.take() {
            let _late = metrics.shutdown_with_timeout(FLUSH_LIMIT);
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where spans go, if anywhere.
#[must_use]
pub fn endpoint(engine: &Engine) -> Option<String> {
    if !engine.otlp_endpoint.is_empty() {
        return Some(engine.otlp_endpoint.clone());
    }
    env::var(ENDPOINT_VARIABLE)
        .ok()
        .filter(|endpoint| !endpoint.is_empty())
}

/// Sets up logs on standard error and, where a receiver is configured, export.
/// `service` is the name in logs and traces: "gantry-image". Once per process,
/// inside the async runtime.
///
/// # Errors
/// The log filter or the endpoint cannot be used.
pub fn init(service: &str, engine: &Engine) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_new(&engine.log).map_err(|source| TelemetryError::Filter {
        filter: engine.log.clone(),
        source,
    })?;
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    let lines = match engine.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    global::set_text_map_propagator(TraceContextPropagator::new());
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    match endpoint(engine) {
        None => {
            registry.init();
            Ok(Telemetry::default())
        }
        Some(endpoint) => {
            let telemetry = export(service, &endpoint)?;
            let tracer = telemetry.traces.as_ref().map(|traces| {
                tracing_opentelemetry::layer()
                    .with_tracer(traces.tracer("gantry"))
                    .with_filter(EnvFilter::new("info,h2=off,hyper=off,tonic=off,tower=off"))
            });
            registry.with(tracer).init();
            Ok(telemetry)
        }
    }
}

/// Starts export to `endpoint`.
fn export(service: &str, endpoint: &str) -> Result<Telemetry, TelemetryError> {
    let failed = |source| TelemetryError::Exporter {
        endpoint: endpoint.to_owned(),
        source,
    };
    let resource = Resource::builder()
        .with_service_name(service.to_owned())
        .build();
    let spans = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(failed)?;
    let traces = SdkTracerProvider::builder()
        .with_batch_exporter(spans)
        .with_resource(resource.clone())
        .build();
    let metrics = opentelemetry_otlp::MetricExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(failed)?;
    let metrics = SdkMeterProvider::builder()
        .with_periodic_exporter(metrics)
        .with_resource(resource)
        .build();
    global::set_tracer_provider(traces.clone());
    global::set_meter_provider(metrics.clone());
    Ok(Telemetry {
        traces: Some(traces),
        metrics: Some(metrics),
    })
}

/// Writes the current span's context into a call's headers.
pub fn inject(headers: &mut HeaderMap) {
    let context = tracing::Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut Headers(headers));
}

/// Records a step that is over as a child of the current span: how the timings
/// that a shim hands back become spans.
pub fn record_step(name: &str, start: SystemTime, duration: Duration) {
    use opentelemetry::trace::Tracer as _;
    let parent = tracing::Span::current().context();
    let tracer = global::tracer("gantry");
    let mut span = tracer
        .span_builder(name.to_owned())
        .with_start_time(start)
        .start_with_context(&tracer, &parent);
    span.end_with_timestamp(start + duration);
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(key.as_bytes()),
            HeaderValue::from_str(&value),
        ) {
            self.0.insert(name, value);
        }
    }
}

struct ReadHeaders<'a>(&'a HeaderMap);

impl Extractor for ReadHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Puts every call a server answers into a span that continues its caller's
/// trace and lasts until the last byte of the answer, and counts it in the
/// histogram `rpc.server.call.duration` (OpenTelemetry semantic conventions for
/// RPC; seconds).
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerTraceLayer;

impl<S> Layer<S> for ServerTraceLayer {
    type Service = ServerTrace<S>;

    fn layer(&self, service: S) -> Self::Service {
        let durations = global::meter("gantry")
            .f64_histogram("rpc.server.call.duration")
            .with_unit("s")
            .with_description("Time from a call's arrival to the end of its answer")
            .build();
        ServerTrace { service, durations }
    }
}

/// See [`ServerTraceLayer`].
#[derive(Clone, Debug)]
pub struct ServerTrace<S> {
    service: S,
    durations: Histogram<f64>,
}

impl<S, B> Service<Request<B>> for ServerTrace<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = method_of(&request);
        let connection = request.extensions().get::<Connection>();
        let under_way = connection.map(Connection::begin);
        let span = tracing::info_span!("rpc", otel.name = method, otel.kind = "server");
        let parent = TraceContextPropagator::new().extract(&ReadHeaders(request.headers()));
        // Fails where nothing is exported: then there is no trace to continue.
        let _no_export = span.set_parent(parent);
        let call = Call {
            method,
            begun: Instant::now(),
            durations: self.durations.clone(),
            span: span.clone(),
            _under_way: under_way,
        };
        let answer = {
            let _entered = span.enter();
            self.service.call(request)
        };
        let answer = async move {
            let response = answer.await?;
            Ok(response.map(|body| Body::new(Counted { body, _call: call })))
        };
        Box::pin(answer.instrument(span))
    }
}

/// "package.Service/Method". Paths of a service that serves other HTTP beside
/// gRPC have names and ids in them, and each would be a series of its own.
fn method_of<B>(request: &Request<B>) -> String {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        request.uri().path().trim_start_matches('/').to_owned()
    } else {
        "http".to_owned()
    }
}

/// One call, from its arrival to the end of its answer.
#[derive(Debug)]
struct Call {
    method: String,
    begun: Instant,
    durations: Histogram<f64>,
    #[expect(dead_code, reason = "held: the span ends when the call does")]
    span: tracing::Span,
    /// Held: the connection is not idle while the call lasts.
    _under_way: Option<crate::incoming::Request>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let method = KeyValue::new("rpc.method", mem::take(&mut self.method));
        self.durations
            .record(self.begun.elapsed().as_secs_f64(), &[method]);
    }
}

/// The body of an answer, which ends its [`Call`] with itself.
#[derive(Debug)]
struct Counted {
    body: Body,
    _call: Call,
}

impl http_body::Body for Counted {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
