//! A blocking netlink socket that speaks in batches.
//!
//! Every conversation here is a handful of microseconds with the kernel of this
//! machine, and some of them take place in threads that have entered another
//! network namespace, where no async runtime runs. So the socket blocks, with a
//! time limit, and all messages of a step travel in one datagram: the kernel
//! works them off in order and answers each.
//!
//! # Locking
//! A socket has one user at a time (`&mut self`); whoever shares it brings the
//! lock.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// The kernel answers in microseconds; a minute of RTNL contention is a fault.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The kernel never sends a larger datagram than the one it is given room for,
/// and uses at most 32 KiB of it for a dump.
const RECEIVE_BYTES: usize = 64 << 10;
/// A rebuilt table with tens of thousands of ports is one datagram.
const SEND_BYTES: usize = 32 << 20;

/// A conversation with the kernel that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket")]
    Open { source: io::Error },
    #[error("cannot {step}: the kernel did not take the request")]
    Send {
        step: &'static str,
        source: io::Error,
    },
    #[error("cannot {step}: the kernel did not answer")]
    Receive {
        step: &'static str,
        source: io::Error,
    },
    #[error("cannot {step}: the kernel's answer is malformed: {reason}")]
    Decode { step: &'static str, reason: String },
    #[error("cannot {step}")]
    Refused {
        step: &'static str,
        source: io::Error,
    },
}

impl NetlinkError {
    /// The error number that the kernel refused a request with, if it did.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open { .. } | Self::Send { .. } | Self::Receive { .. } | Self::Decode { .. } => {
                None
            }
        }
    }
}

/// One message of a batch.
#[derive(Debug)]
pub(crate) struct Request<T> {
    /// What it does, for an error: "create the bridge".
    pub(crate) step: &'static str,
    /// `NLM_F_*` flags beside REQUEST and ACK.
    pub(crate) flags: u16,
    pub(crate) payload: T,
}

#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket for links, addresses and routes of this thread's namespace.
    pub(crate) fn route() -> Result<Self, NetlinkError> {
        Self::open(NETLINK_ROUTE)
    }

    /// A socket for nftables of this thread's namespace.
    pub(crate) fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Open { source };
        let mut socket = Socket::new(protocol).map_err(failed)?;
        let port = socket.bind_auto().map_err(failed)?.port_number();
        socket.set_cap_ack(true).map_err(failed)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))
            .map_err(|errno| failed(errno.into()))?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BYTES)
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            socket,
            port,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
        })
    }

    /// The address that the kernel knows this socket by.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Makes room for so many bytes of messages that were not received yet.
    pub(crate) fn receive_up_to(&self, bytes: usize) -> Result<(), NetlinkError> {
        setsockopt(&self.socket, sockopt::RcvBufForce, &bytes).map_err(|errno| NetlinkError::Open {
            source: errno.into(),
        })
    }

    /// Receives notifications of a multicast group from now on.
    pub(crate) fn join(&self, group: u32) -> Result<(), NetlinkError> {
        self.socket
            .add_membership(group)
            .map_err(|source| NetlinkError::Open { source })
    }

    /// Sends `requests` together and waits until each is answered.
    ///
    /// # Errors
    /// The first request that was refused. Those after it were tried all the
    /// same.
    pub(crate) fn apply<T>(&mut self, requests: Vec<Request<T>>) -> Result<(), NetlinkError>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
    {
        self.apply_each(requests)?.into_iter().collect()
    }

    /// Sends `requests` together and returns the answer to each, in order.
    ///
    /// # Errors
    /// The conversation itself fails.
    pub(crate) fn apply_each<T>(
        &mut self,
        requests: Vec<Request<T>>,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
    {
        let Some(last) = requests.last() else {
            return Ok(Vec::new());
        };
        let last_step = last.step;
        let first_sequence = self.sequence.wrapping_add(1);
        let steps: Vec<&'static str> = requests.iter().map(|request| request.step).collect();
        self.send(
            requests
                .into_iter()
                .map(|request| (request.flags | NLM_F_ACK, request.payload)),
            last_step,
        )?;
        let mut outcomes: Vec<_> = steps.iter().map(|_| Ok(())).collect();
        let mut pending = steps.len();
        while pending > 0 {
            self.receive(last_step)?;
            for message in messages::<T>(&self.buffer, last_step) {
                let message = message?;
                let index = message.header.sequence_number.wrapping_sub(first_sequence) as usize;
                let (Some(step), Some(outcome)) = (steps.get(index), outcomes.get_mut(index))
                else {
                    // Late answer to a request that was given up.
                    continue;
                };
                if let NetlinkPayload::Error(error) = message.payload {
                    pending -= 1;
                    if error.code.is_some() {
                        *outcome = Err(NetlinkError::Refused {
                            step,
                            source: error.to_io(),
                        });
                    }
                }
            }
        }
        Ok(outcomes)
    }

    /// Sends a batch that takes effect as a whole or not at all: the first and
    /// the last message frame it and are not answered unless they fail.
    pub(crate) fn transact<T>(
        &mut self,
        begin: T,
        requests: Vec<Request<T>>,
        end: T,
    ) -> Result<(), NetlinkError>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
    {
        let Some(last) = requests.last() else {
            return Ok(());
        };
        let last_step = last.step;
        let count = requests.len();
        let steps: Vec<&'static str> = requests.iter().map(|request| request.step).collect();
        let begin_sequence = self.sequence.wrapping_add(1);
        // Only the last is acknowledged: by then the batch is committed. A
        // failing one is answered in any case.
        let framed = std::iter::once((0, begin))
            .chain(requests.into_iter().enumerate().map(|(index, request)| {
                let acknowledge = if index + 1 == count { NLM_F_ACK } else { 0 };
                (request.flags | acknowledge, request.payload)
            }))
            .chain(std::iter::once((0, end)));
        self.send(framed, last_step)?;
        let mut outcome = Ok(());
        loop {
            self.receive(last_step)?;
            let mut finished = false;
            for message in messages::<T>(&self.buffer, last_step) {
                let message = message?;
                let index = message.header.sequence_number.wrapping_sub(begin_sequence) as usize;
                let NetlinkPayload::Error(error) = message.payload else {
                    continue;
                };
                if index > count + 1 {
                    continue;
                }
                let step = steps
                    .get(index.wrapping_sub(1))
                    .copied()
                    .unwrap_or("commit the firewall's changes");
                if error.code.is_some() && outcome.is_ok() {
                    outcome = Err(NetlinkError::Refused {
                        step,
                        source: error.to_io(),
                    });
                }
                // The frame is answered only when the whole is refused.
                finished |= index == count || index == 0;
            }
            if finished {
                return outcome;
            }
        }
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump<T>(&mut self, step: &'static str, payload: T) -> Result<Vec<T>, NetlinkError>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
    {
        self.send(std::iter::once((NLM_F_DUMP, payload)), step)?;
        self.collect(step, true)
    }

    /// Asks for one object.
    pub(crate) fn get<T>(
        &mut self,
        step: &'static str,
        payload: T,
    ) -> Result<Option<T>, NetlinkError>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
    {
        self.send(std::iter::once((0, payload)), step)?;
        Ok(self.collect(step, false)?.pop())
    }

    fn collect<T>(&mut self, step: &'static str, all: bool) -> Result<Vec<T>, NetlinkError>
    where
        T: NetlinkDeserializable,
    {
        let mut found = Vec::new();
        loop {
            self.receive(step)?;
            for message in messages::<T>(&self.buffer, step) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => {
                        found.push(object);
                        if !all {
                            return Ok(found);
                        }
                    }
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(NetlinkError::Refused {
                            step,
                            source: error.to_io(),
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    fn send<T>(
        &mut self,
        parts: impl Iterator<Item = (u16, T)>,
        step: &'static str,
    ) -> Result<(), NetlinkError>
    where
        T: NetlinkSerializable + Into<NetlinkPayload<T>>,
    {
        let mut datagram = Vec::new();
        for (flags, payload) in parts {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload.into());
            message.header.flags = flags | NLM_F_REQUEST;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut datagram[start..]);
        }
        self.socket
            .send(&datagram, 0)
            .map_err(|source| NetlinkError::Send { step, source })?;
        Ok(())
    }

    /// Receives one datagram into the buffer.
    pub(crate) fn receive(&mut self, step: &'static str) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NetlinkError::Receive { step, source }),
            }
        }
    }

    /// The messages of the datagram that [`Self::receive`] took.
    pub(crate) fn received<T: NetlinkDeserializable>(
        &self,
        step: &'static str,
    ) -> impl Iterator<Item = Result<NetlinkMessage<T>, NetlinkError>> {
        messages(&self.buffer, step)
    }
}

/// The messages of one datagram.
fn messages<T: NetlinkDeserializable>(
    datagram: &[u8],
    step: &'static str,
) -> impl Iterator<Item = Result<NetlinkMessage<T>, NetlinkError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.len() < 4 {
            return None;
        }
        let outcome =
            NetlinkMessage::<T>::deserialize(rest).map_err(|error| NetlinkError::Decode {
                step,
                reason: error.to_string(),
            });
        let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let advance = length.max(4).next_multiple_of(4);
        rest = rest.get(advance..).unwrap_or_default();
        Some(outcome)
    })
}
