//! One container's shim, seen from here: a process and a connection.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_kit::client::{self, Client, MESSAGE_LIMIT};
use gantry_proto::shim::v1::shim_service_client::ShimServiceClient;
use tokio::sync::watch;
use tonic::{Code, Response, Status};

use crate::bundle::{Bundle, Record};
use crate::error::{Error, Result};
use crate::life::ExitStatus;
use crate::process::Process;

/// Limit of a call to a shim that does nothing long.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// When a call that is not answered yet looks whether the shim is stopped.
const SUSPICION: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub struct Shim {
    pub id: String,
    pub bundle: Bundle,
    pub log_directory: PathBuf,
    /// `None`: it had died before this service began.
    process: Option<Process>,
    client: ShimServiceClient<Client>,
    record: Mutex<Record>,
    /// What the shim says of a runtime that drives its container. Empty: nothing.
    trouble: Mutex<String>,
    /// Held by a call that starts the container: its end is told after it.
    pub starting: tokio::sync::Mutex<()>,
    /// Held by a call that deletes the container.
    pub deleting: tokio::sync::Mutex<()>,
    exit: watch::Sender<Option<ExitStatus>>,
    gone: watch::Sender<bool>,
}

impl Shim {
    #[must_use]
    pub fn new(
        id: String,
        bundle: Bundle,
        log_directory: PathBuf,
        process: Option<Process>,
        record: Record,
    ) -> Arc<Self> {
        let client = ShimServiceClient::new(client::connect_watched(&bundle.socket()))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Arc::new(Self {
            id,
            bundle,
            log_directory,
            process,
            client,
            record: Mutex::new(record),
            trouble: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            deleting: tokio::sync::Mutex::default(),
            exit: watch::Sender::new(None),
            gone: watch::Sender::new(false),
        })
    }

    #[must_use]
    pub fn client(&self) -> ShimServiceClient<Client> {
        self.client.clone()
    }

    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// 0 once it is gone.
    #[must_use]
    pub fn pid(&self) -> i32 {
        if self.is_gone() {
            return 0;
        }
        self.process.as_ref().map_or(0, Process::pid)
    }

    #[must_use]
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Returns once the shim is gone and its end was dealt with.
    pub async fn gone(&self) {
        // The sender lives as long as `self`.
        drop(self.gone.subscribe().wait_for(|gone| *gone).await);
    }

    pub fn set_gone(&self) {
        self.gone.send_replace(true);
    }

    #[must_use]
    pub fn is_stopped(&self) -> bool {
        !self.is_gone() && self.process.as_ref().is_some_and(Process::is_stopped)
    }

    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        self.exit.borrow().clone()
    }

    pub fn set_exit(&self, exit: ExitStatus) {
        self.exit.send_replace(Some(exit));
    }

    /// Returns once the first process has ended.
    pub async fn exited(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Changes what adoption needs to know, also on disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        self.bundle.keep(&record)
    }

    /// Why the runtime that drives the container cannot be relied on, as the shim
    /// last said. Empty: it can, or is the shim.
    #[must_use]
    pub fn trouble(&self) -> String {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    pub fn set_trouble(&self, why: &str) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone_into(&mut trouble);
    }

    /// Makes a call, and waits neither for a shim that is dead or stopped nor
    /// for longer than `limit`.
    ///
    /// # Errors
    /// The shim's own, or why it did not answer.
    pub async fn call<T, F>(
        &self,
        limit: Duration,
        call: impl FnOnce(ShimServiceClient<Client>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        if self.is_gone() {
            return Err(self.lost());
        }
        tokio::select! {
            answer = call(self.client()) => match answer {
                Ok(answer) => Ok(answer.into_inner()),
                Err(status) => Err(self.failed(status)),
            },
            () = self.gone() => Err(self.lost()),
            () = self.suspicion() => Err(Error::Stopped { id: self.id.clone(), pid: self.pid() }),
            () = tokio::time::sleep(limit) => Err(Error::NoAnswer { id: self.id.clone(), limit }),
        }
    }

    /// Returns, after a moment's patience, if the shim is stopped.
    pub async fn suspicion(&self) {
        tokio::time::sleep(SUSPICION).await;
        if !self.is_stopped() {
            std::future::pending::<()>().await;
        }
    }

    /// A call's failure: the shim's own error, or the end of the shim.
    #[must_use]
    pub fn failed(&self, status: Status) -> Error {
        // What the shim itself says has details; what a broken connection
        // leads to has none.
        if status.code() == Code::Unavailable || status.details().is_empty() {
            return self.lost_with(&status);
        }
        Error::Shim(Box::new(status))
    }

    fn lost_with(&self, status: &Status) -> Error {
        let words = self.bundle.last_words();
        let why = if words.is_empty() {
            status.message()
        } else {
            &words
        };
        Error::Gone {
            id: self.id.clone(),
            why: format!(" ({why})"),
        }
    }

    /// The error of whatever needs a shim that is gone.
    #[must_use]
    pub fn lost(&self) -> Error {
        let words = self.bundle.last_words();
        let why = if words.is_empty() {
            String::new()
        } else {
            format!(" ({words})")
        };
        Error::Gone {
            id: self.id.clone(),
            why,
        }
    }
}
