//! Restores the table when somebody else removes a part of it.
//!
//! The kernel tells every change of nftables to those who ask. A thread of its
//! own listens: it wakes on a change by another process, and ends when told to.

use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::{Firewall, removes_part_of};
use crate::netlink::{Netlink, NetlinkError};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP_NFTABLES: u32 = 7;
/// A table with all ports published is replaced in some 10 MB of notifications;
/// that of another engine must not make this one replace its own.
const NOTIFICATION_BYTES: usize = 16 << 20;
const STEP: &str = "watch the firewall";

/// A watch that ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(firewall: Arc<Firewall>) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Open { source };
        let listener = Netlink::netfilter()?;
        listener.receive_up_to(NOTIFICATION_BYTES)?;
        listener.join(GROUP_NFTABLES)?;
        let (stopped, stop) =
            pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let thread = thread::Builder::new()
            .name("firewall-watch".to_owned())
            .spawn(move || watch(&firewall, listener, &stopped))
            .map_err(failed)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the firewall's watch has panicked");
        }
    }
}

fn watch(firewall: &Firewall, mut listener: Netlink, stopped: &OwnedFd) {
    let own = firewall.port();
    loop {
        match wait(&listener, stopped) {
            Ok(true) => {}
            Ok(false) => return,
            Err(source) => {
                tracing::error!(error = %source, "the firewall is watched no more");
                return;
            }
        }
        let damaged = match listener.receive(STEP) {
            Ok(()) => concerns(&listener, firewall.table(), own),
            // More happened than the socket could hold: look for ourselves.
            Err(NetlinkError::Receive { source, .. })
                if source.raw_os_error() == Some(nix::libc::ENOBUFS) =>
            {
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a notification of the firewall is lost");
                true
            }
        };
        if damaged {
            restore(firewall);
        }
    }
}

fn restore(firewall: &Firewall) {
    let table = firewall.table();
    match firewall.restore() {
        Ok(()) => tracing::warn!(table, "somebody removed firewall rules; they are restored"),
        Err(error) => tracing::error!(
            table,
            error = %crate::error::chain(&error),
            "somebody removed firewall rules, and they cannot be restored"
        ),
    }
}

/// True: there is something to receive. False: stopped.
fn wait(listener: &Netlink, stopped: &OwnedFd) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        PollFd::new(listener.fd(), PollFlags::POLLIN),
    ];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) if fds[0].any().unwrap_or(true) => return Ok(false),
            Ok(_) => return Ok(true),
        }
    }
}

fn concerns(listener: &Netlink, table: &str, own: u32) -> bool {
    listener
        .received::<NetfilterMessage>(STEP)
        .any(|message| match message {
            Ok(message) if message.header.port_number == own => false,
            Ok(message) => match message.payload {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(change),
                    ..
                }) => removes_part_of(&change, table),
                _ => false,
            },
            // Not readable: it may be about ours.
            Err(_) => true,
        })
}
