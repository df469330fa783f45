//! `ContainerService`: wire in, a verb of the domain, wire out.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use gantry_kit::pages::{self, PageAsked, newest_first};
use gantry_proto::gateway::v1 as wire;
use gantry_proto::image::v1 as image;
use gantry_proto::runtime::v1 as runtime;
use gantry_proto::shim::v1 as shim;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;
use wire::container_service_server::ContainerService;

use super::status::status;
use super::{answer, copies, request};
use crate::container::Record;
use crate::engine::Engine;
use crate::error::{Error, Result as DomainResult};
use crate::filter::Filter;
use crate::lifecycle::attach::AttachEvent;
use crate::lifecycle::commit::CommitWanted;
use crate::lifecycle::exec::ExecEvent;
use crate::lifecycle::list::ListWanted;
use crate::lifecycle::run::RunEvent;
use crate::lifecycle::start::Starter;
use crate::lifecycle::stop::StopWanted;
use crate::lifecycle::wait::Condition;
use crate::lifecycle::{self as verbs, to_its_end};
use crate::peers::{LogsWanted, Place};
use crate::roster::Entry;
use crate::wanted::Wanted;
use crate::wire as common;

/// Events that wait for a caller.
const BACKLOG: usize = 16;

type Answer<T> = Result<Response<T>, Status>;
pub(super) type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Debug)]
pub(super) struct Containers {
    pub(super) engine: Arc<Engine>,
}

impl Containers {
    fn find(&self, query: &str) -> Result<Arc<Entry>, Status> {
        self.engine.roster.find(query).map_err(status)
    }

    /// Finds a container and runs a verb on it to its end; answers its id.
    async fn on<F, Fut>(&self, query: &str, verb: F) -> Result<String, Status>
    where
        F: FnOnce(Arc<Engine>, Arc<Entry>) -> Fut,
        Fut: Future<Output = DomainResult<()>> + Send + 'static,
    {
        let entry = self.find(query)?;
        let id = entry.id.to_string();
        to_its_end(verb(Arc::clone(&self.engine), entry))
            .await
            .map_err(status)?;
        Ok(id)
    }
}

fn filters(wire: Vec<image::Filter>) -> Vec<Filter> {
    wire.into_iter()
        .map(|filter| Filter {
            key: filter.key,
            value: filter.value,
        })
        .collect()
}

fn stop_wanted(timeout_seconds: Option<i32>, signal: String) -> StopWanted {
    StopWanted {
        timeout_seconds,
        signal,
    }
}

/// Runs a streaming verb in a task of its own, its failure as the last event.
fn streamed<E, F, Fut>(failed: fn(crate::error::Error) -> E, verb: F) -> ReceiverStream<E>
where
    E: Send + 'static,
    F: FnOnce(mpsc::Sender<E>) -> Fut,
    Fut: Future<Output = DomainResult<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let verb = verb(sender.clone());
    tokio::spawn(
        async move {
            if let Err(error) = verb.await {
                let _nobody_listens = sender.send(failed(error)).await;
            }
        }
        .in_current_span(),
    );
    ReceiverStream::new(receiver)
}

/// Ends a stream with an error when the gateway stops: one that just ended would
/// look whole.
fn whole_or_failed<T: Send + 'static>(
    stream: BoxStream<T>,
    stopping: CancellationToken,
) -> BoxStream<T> {
    let step = |state: Option<(BoxStream<T>, CancellationToken)>| async {
        let (mut stream, stopping) = state?;
        let next = tokio::select! {
            next = stream.next() => next?,
            () = stopping.cancelled() => Err(status(Error::Stopping)),
        };
        let rest = next.is_ok().then_some((stream, stopping));
        Some((next, rest))
    };
    futures::stream::unfold(Some((stream, stopping)), step).boxed()
}

#[tonic::async_trait]
impl ContainerService for Containers {
    type RunStream = BoxStream<wire::RunResponse>;
    type AttachStream = BoxStream<shim::AttachResponse>;
    type ExecStream = BoxStream<wire::ExecResponse>;
    type LogsStream = BoxStream<runtime::LogsResponse>;
    type EventsStream = BoxStream<wire::EventsResponse>;
    type DiffStream = BoxStream<image::DiffResponse>;
    type ExportStream = BoxStream<image::ExportResponse>;
    type CopyOutStream = BoxStream<runtime::CopyOutResponse>;

    async fn create(&self, request: Request<wire::CreateRequest>) -> Answer<wire::CreateResponse> {
        let request = request.into_inner();
        let wanted = Wanted::try_from(request.config.unwrap_or_default()).map_err(status)?;
        let engine = Arc::clone(&self.engine);
        let create = async move { verbs::create::create(&engine, wanted, request.name).await };
        let entry = to_its_end(create).await.map_err(status)?;
        Ok(Response::new(wire::CreateResponse {
            container_id: entry.id.to_string(),
            warnings: Vec::new(),
        }))
    }

    async fn run(&self, request: Request<Streaming<wire::RunRequest>>) -> Answer<Self::RunStream> {
        let mut stream = request.into_inner();
        let first = request::first(&mut stream, "run").await?;
        let Some(wire::run_request::Message::Run(open)) = first.message else {
            return Err(request::missing("run"));
        };
        let wanted = request::run(open)?;
        let inputs = request::inputs(stream);
        let engine = Arc::clone(&self.engine);
        let events = streamed(RunEvent::Failed, |events| {
            verbs::run::run(engine, wanted, inputs, events)
        });
        let answers = events.filter_map(|event| async { answer::run(event) });
        Ok(Response::new(answers.boxed()))
    }

    async fn start(&self, request: Request<wire::StartRequest>) -> Answer<wire::StartResponse> {
        let start = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            let started = verbs::start::start(&engine, &entry, Starter::Person, None).await;
            started.map(|_no_window| ())
        };
        let container_id = self.on(&request.into_inner().container, start).await?;
        Ok(Response::new(wire::StartResponse { container_id }))
    }

    async fn stop(&self, request: Request<wire::StopRequest>) -> Answer<wire::StopResponse> {
        let request = request.into_inner();
        let wanted = stop_wanted(request.timeout_seconds, request.signal);
        let stop = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            verbs::stop::stop(&engine, &entry, &wanted).await
        };
        let container_id = self.on(&request.container, stop).await?;
        Ok(Response::new(wire::StopResponse { container_id }))
    }

    async fn restart(
        &self,
        request: Request<wire::RestartRequest>,
    ) -> Answer<wire::RestartResponse> {
        let request = request.into_inner();
        let wanted = stop_wanted(request.timeout_seconds, request.signal);
        let restart = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            verbs::restart::restart(&engine, &entry, &wanted).await
        };
        let container_id = self.on(&request.container, restart).await?;
        Ok(Response::new(wire::RestartResponse { container_id }))
    }

    async fn kill(&self, request: Request<wire::KillRequest>) -> Answer<wire::KillResponse> {
        let wire::KillRequest {
            container,
            signal,
            exec_id,
        } = request.into_inner();
        let kill = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            match exec_id.as_str() {
                "" => verbs::kill::kill(&engine, &entry, &signal).await,
                id => verbs::kill::kill_exec(&engine, &entry, id, &signal).await,
            }
        };
        let container_id = self.on(&container, kill).await?;
        Ok(Response::new(wire::KillResponse { container_id }))
    }

    async fn resize(&self, request: Request<wire::ResizeRequest>) -> Answer<wire::ResizeResponse> {
        let request = request.into_inner();
        let entry = self.find(&request.container)?;
        let size = request::size(request.size.ok_or_else(|| request::absent("size"))?);
        let resized = verbs::resize::resize(&self.engine, &entry, &request.exec_id, size).await;
        resized.map_err(status)?;
        Ok(Response::new(wire::ResizeResponse {}))
    }

    async fn pause(&self, request: Request<wire::PauseRequest>) -> Answer<wire::PauseResponse> {
        let pause = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            verbs::pause::pause(&engine, &entry).await
        };
        let container_id = self.on(&request.into_inner().container, pause).await?;
        Ok(Response::new(wire::PauseResponse { container_id }))
    }

    async fn unpause(
        &self,
        request: Request<wire::UnpauseRequest>,
    ) -> Answer<wire::UnpauseResponse> {
        let unpause = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            verbs::pause::unpause(&engine, &entry).await
        };
        let container_id = self.on(&request.into_inner().container, unpause).await?;
        Ok(Response::new(wire::UnpauseResponse { container_id }))
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Answer<wire::WaitResponse> {
        let request = request.into_inner();
        let condition = match request.condition() {
            wire::WaitCondition::NextExit => Condition::NextExit,
            wire::WaitCondition::Removed => Condition::Removed,
            wire::WaitCondition::NotRunning | wire::WaitCondition::Unspecified => {
                Condition::NotRunning
            }
        };
        let entry = self.find(&request.container)?;
        let exit = verbs::wait::wait(&self.engine, &entry, condition).await;
        Ok(Response::new(wire::WaitResponse {
            status: Some(common::to_exit(&exit.map_err(status)?)),
        }))
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Answer<wire::RemoveResponse> {
        let wire::RemoveRequest {
            container,
            force,
            volumes,
        } = request.into_inner();
        let remove = move |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            match volumes {
                true => verbs::remove::remove_with_volumes(&engine, &entry, force).await,
                false => verbs::remove::remove(&engine, &entry, force).await,
            }
        };
        let container_id = self.on(&container, remove).await?;
        Ok(Response::new(wire::RemoveResponse { container_id }))
    }

    async fn rename(&self, request: Request<wire::RenameRequest>) -> Answer<wire::RenameResponse> {
        let wire::RenameRequest { container, name } = request.into_inner();
        let rename = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            verbs::rename::rename(&engine, &entry, &name).await
        };
        self.on(&container, rename).await?;
        Ok(Response::new(wire::RenameResponse {}))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<wire::ListResponse> {
        let request = request.into_inner();
        let wanted = ListWanted {
            all: request.all,
            limit: request.limit as usize,
            filters: filters(request.filters),
        };
        let records = verbs::list::list(&self.engine, &wanted).await;
        let records = records.map_err(status)?;
        let sizes = match request.size {
            true => Some(self.engine.peers.image.sizes().await.map_err(status)?),
            false => None,
        };
        let asked = PageAsked {
            size: request.page_size,
            token: &request.page_token,
        };
        let place =
            |record: &Arc<Record>| newest_first(record.created.as_nanosecond(), record.id.as_str());
        let page = pages::page(records, asked, place, |record| match &sizes {
            None => answer::summary(&record),
            Some(sizes) => {
                let sizes = sizes.get(record.id.as_str()).copied();
                answer::sized(&record, sizes.unwrap_or_default())
            }
        });
        Ok(Response::new(wire::ListResponse {
            containers: page.entries,
            next_page_token: page.next_token,
        }))
    }

    async fn inspect(
        &self,
        request: Request<wire::InspectRequest>,
    ) -> Answer<wire::InspectResponse> {
        let wire::InspectRequest { container, size } = request.into_inner();
        let detail = verbs::inspect::inspect(&self.engine, &container).map_err(status)?;
        let record = Arc::clone(&detail.record);
        let mut container = answer::detail(detail);
        if size {
            let sizes = self.engine.peers.image.sizes().await.map_err(status)?;
            let sizes = sizes.get(record.id.as_str()).copied().unwrap_or_default();
            container.summary = Some(answer::sized(&record, sizes));
        }
        Ok(Response::new(wire::InspectResponse {
            container: Some(container),
        }))
    }

    async fn attach(
        &self,
        request: Request<Streaming<wire::AttachRequest>>,
    ) -> Answer<Self::AttachStream> {
        let mut stream = request.into_inner();
        let first = request::first(&mut stream, "open").await?;
        let Some(wire::attach_request::Message::Open(open)) = first.message else {
            return Err(request::missing("open"));
        };
        let entry = self.find(&open.container)?;
        let window = request::attach(&open);
        let inputs = request::inputs(stream);
        let engine = Arc::clone(&self.engine);
        let events = streamed(AttachEvent::Failed, |events| {
            verbs::attach::attach(engine, entry, window, open.start, inputs, events)
        });
        let answers = events.filter_map(|event| async { answer::attach(event) });
        Ok(Response::new(answers.boxed()))
    }

    async fn exec(
        &self,
        request: Request<Streaming<wire::ExecRequest>>,
    ) -> Answer<Self::ExecStream> {
        let mut stream = request.into_inner();
        let first = request::first(&mut stream, "exec").await?;
        let Some(wire::exec_request::Message::Exec(open)) = first.message else {
            return Err(request::missing("exec"));
        };
        let entry = self.find(&open.container)?;
        let wanted = request::exec(open);
        let inputs = request::inputs(stream);
        let engine = Arc::clone(&self.engine);
        let events = streamed(ExecEvent::Failed, |events| {
            verbs::exec::exec(engine, entry, wanted, inputs, events)
        });
        let answers = events.filter_map(|event| async { answer::exec(event) });
        Ok(Response::new(answers.boxed()))
    }

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let entry = self.find(&request.container)?;
        let wanted = LogsWanted {
            follow: request.follow,
            since: request.since.as_ref().map(common::timestamp),
            until: request.until.as_ref().map(common::timestamp),
            tail: request.tail,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let batches = verbs::logs::logs(&self.engine, &entry, wanted).await;
        let batches = batches
            .map_err(status)?
            .map(|batch| batch.map(|batch| batch.0).map_err(status))
            .take_until(self.engine.stopping.clone().cancelled_owned());
        Ok(Response::new(batches.boxed()))
    }

    async fn events(&self, request: Request<wire::EventsRequest>) -> Answer<Self::EventsStream> {
        let request = request.into_inner();
        let filters = filters(request.filters);
        let listening = verbs::events::events(
            &self.engine,
            request.since.as_ref().map(common::timestamp),
            request.until.as_ref().map(common::timestamp),
            &filters,
        );
        let listening = listening.await.map_err(status)?;
        let events = futures::stream::unfold(listening, |mut listening| async {
            let told = listening.next().await?;
            Some((Ok(answer::told(&told)), listening))
        });
        let events = events.take_until(self.engine.stopping.clone().cancelled_owned());
        Ok(Response::new(events.boxed()))
    }

    async fn stats(&self, request: Request<wire::StatsRequest>) -> Answer<wire::StatsResponse> {
        let entry = self.find(&request.into_inner().container)?;
        let stats = verbs::stats::stats(&self.engine, &entry).await;
        let record = entry.record();
        Ok(Response::new(wire::StatsResponse {
            container_id: record.id.to_string(),
            name: record.name.clone(),
            stats: Some(stats.map_err(status)?.0),
        }))
    }

    async fn top(&self, request: Request<wire::TopRequest>) -> Answer<wire::TopResponse> {
        let entry = self.find(&request.into_inner().container)?;
        let pids = verbs::stats::top(&self.engine, &entry).await;
        Ok(Response::new(wire::TopResponse {
            pids: pids.map_err(status)?,
        }))
    }

    async fn commit(&self, request: Request<wire::CommitRequest>) -> Answer<wire::CommitResponse> {
        let request = request.into_inner();
        let entry = self.find(&request.container)?;
        let wanted = CommitWanted {
            reference: request.reference,
            author: request.author,
            message: request.message,
            changes: request.changes,
            no_pause: request.no_pause,
        };
        let engine = Arc::clone(&self.engine);
        // To its end, so that a container that was frozen for it goes on.
        let commit = async move { verbs::commit::commit(&engine, &entry, wanted).await };
        let committed = to_its_end(commit).await.map_err(status)?;
        Ok(Response::new(wire::CommitResponse {
            image: committed.0.image,
        }))
    }

    async fn diff(&self, request: Request<wire::DiffRequest>) -> Answer<Self::DiffStream> {
        let entry = self.find(&request.into_inner().container)?;
        let changes = verbs::files::diff(&self.engine, &entry).await;
        let changes = changes
            .map_err(status)?
            .map(|some| some.map(|some| some.0).map_err(status));
        let changes = whole_or_failed(changes.boxed(), self.engine.stopping.clone());
        Ok(Response::new(changes))
    }

    async fn export(&self, request: Request<wire::ExportRequest>) -> Answer<Self::ExportStream> {
        let entry = self.find(&request.into_inner().container)?;
        let chunks = verbs::files::export(&self.engine, &entry).await;
        let chunks = chunks
            .map_err(status)?
            .map(|chunk| chunk.map(|chunk| chunk.0).map_err(status));
        let chunks = whole_or_failed(chunks.boxed(), self.engine.stopping.clone());
        Ok(Response::new(chunks))
    }

    async fn stat_path(
        &self,
        request: Request<wire::StatPathRequest>,
    ) -> Answer<runtime::StatPathResponse> {
        let wire::StatPathRequest {
            container,
            path,
            follow,
        } = request.into_inner();
        let entry = self.find(&container)?;
        let found = verbs::copy::stat(&self.engine, &entry, Place { path, follow }).await;
        Ok(Response::new(found.map_err(status)?.0))
    }

    async fn copy_out(
        &self,
        request: Request<wire::CopyOutRequest>,
    ) -> Answer<Self::CopyOutStream> {
        let wire::CopyOutRequest {
            container,
            path,
            follow,
            name,
        } = request.into_inner();
        let entry = self.find(&container)?;
        let place = Place { path, follow };
        let pieces = copies::out(&self.engine, &entry, place, name).await?;
        let pieces = whole_or_failed(pieces, self.engine.stopping.clone());
        Ok(Response::new(pieces))
    }

    async fn copy_in(
        &self,
        request: Request<Streaming<wire::CopyInRequest>>,
    ) -> Answer<runtime::CopyInResponse> {
        let mut stream = request.into_inner();
        let open = copies::open(&mut stream).await?;
        let entry = self.find(&open.container)?;
        copies::into(&self.engine, entry, open, stream).await?;
        Ok(Response::new(runtime::CopyInResponse {}))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Answer<wire::UpdateResponse> {
        let request = request.into_inner();
        let container = request.container.clone();
        let wanted = request::update(request)?;
        let update = |engine: Arc<Engine>, entry: Arc<Entry>| async move {
            verbs::update::update(&engine, &entry, wanted).await
        };
        Ok(Response::new(wire::UpdateResponse {
            container_id: self.on(&container, update).await?,
            warnings: Vec::new(),
        }))
    }

    async fn prune(&self, request: Request<wire::PruneRequest>) -> Answer<wire::PruneResponse> {
        let filters = filters(request.into_inner().filters);
        let engine = Arc::clone(&self.engine);
        let prune = async move { verbs::prune::prune(&engine, &filters).await };
        let pruned = to_its_end(prune).await.map_err(status)?;
        Ok(Response::new(wire::PruneResponse {
            container_ids: pruned.ids,
            reclaimed_bytes: pruned.reclaimed,
        }))
    }
}
