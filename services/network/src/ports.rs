//! Ports of the host that are published for containers.
//!
//! A published port is held by a socket that is really bound to it, for as long
//! as it is published. No packet reaches that socket (the firewall sends them
//! to the container first), but nobody else can take the port, and a port that
//! somebody has is found out before anything is changed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};

use crate::endpoint::{PortRequest, Protocol, PublishedPort};

/// Where ports come from that nobody named (RFC 6335, section 6).
const DYNAMIC: std::ops::RangeInclusive<u16> = 49153..=65535;

/// A port that cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error(
        "port {port}/{protocol} of the host address {address} is already in use; publish another, or stop what listens there"
    )]
    InUse {
        address: Ipv4Addr,
        port: u16,
        protocol: Protocol,
    },
    #[error("the host has no address {address} to publish port {port}/{protocol} on")]
    NoSuchAddress {
        address: Ipv4Addr,
        port: u16,
        protocol: Protocol,
    },
    #[error("cannot hold port {port}/{protocol} of the host address {address}")]
    Hold {
        address: Ipv4Addr,
        port: u16,
        protocol: Protocol,
        source: io::Error,
    },
    #[error("no {protocol} port of the host address {address} is free between {first} and {last}")]
    NoneFree {
        address: Ipv4Addr,
        protocol: Protocol,
        first: u16,
        last: u16,
    },
}

/// A published port, held.
#[derive(Debug)]
pub(crate) struct HeldPort {
    pub(crate) port: PublishedPort,
    /// None for a protocol that this kernel has no sockets for: the firewall
    /// alone then keeps two containers off the same port.
    _socket: Option<Socket>,
}

/// Hands out ports.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    /// Where the next search for a free port begins: one that was just released
    /// may still be known to a client.
    next: AtomicU32,
}

impl HostPorts {
    /// Holds all these ports, or none.
    pub(crate) fn hold(&self, requests: &[PortRequest]) -> Result<Vec<HeldPort>, PortError> {
        // Those that were named go first, so that a search cannot take one.
        let mut held: Vec<Option<HeldPort>> = requests.iter().map(|_| None).collect();
        for (request, slot) in requests.iter().zip(&mut held) {
            if let Some(port) = request.host_port {
                *slot = Some(hold(published(request, port))?);
            }
        }
        for (request, slot) in requests.iter().zip(&mut held) {
            if slot.is_none() {
                *slot = Some(self.search(request)?);
            }
        }
        Ok(held.into_iter().flatten().collect())
    }

    fn search(&self, request: &PortRequest) -> Result<HeldPort, PortError> {
        let (first, last) = (*DYNAMIC.start(), *DYNAMIC.end());
        for _ in DYNAMIC {
            let step = self.next.fetch_add(1, Ordering::Relaxed) % u32::from(last - first + 1);
            let candidate = published(request, first + step as u16);
            match hold(candidate) {
                Err(PortError::InUse { .. }) => {}
                outcome => return outcome,
            }
        }
        Err(PortError::NoneFree {
            address: request.host_address,
            protocol: request.protocol,
            first,
            last,
        })
    }
}

fn published(request: &PortRequest, host_port: u16) -> PublishedPort {
    PublishedPort {
        host_address: request.host_address,
        host_port,
        container_port: request.container_port,
        protocol: request.protocol,
    }
}

/// Holds one port.
pub(crate) fn hold(port: PublishedPort) -> Result<HeldPort, PortError> {
    let (address, protocol) = (port.host_address, port.protocol);
    let error = match bind(port) {
        Ok(socket) => {
            return Ok(HeldPort {
                port,
                _socket: socket,
            });
        }
        Err(error) => error,
    };
    let port = port.host_port;
    Err(match error.kind() {
        io::ErrorKind::AddrInUse => PortError::InUse {
            address,
            port,
            protocol,
        },
        io::ErrorKind::AddrNotAvailable => PortError::NoSuchAddress {
            address,
            port,
            protocol,
        },
        _ => PortError::Hold {
            address,
            port,
            protocol,
            source: error,
        },
    })
}

fn bind(port: PublishedPort) -> io::Result<Option<Socket>> {
    let kind = match port.protocol {
        Protocol::Tcp | Protocol::Sctp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let number = i32::from(port.protocol.number()).into();
    let socket = match Socket::new(Domain::IPV4, kind, Some(number)) {
        Err(error)
            if port.protocol == Protocol::Sctp
                && error.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) =>
        {
            return Ok(None);
        }
        outcome => outcome?,
    };
    if kind == Type::STREAM {
        // Connections that a former server closed must not keep the port; a
        // socket that listens does.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SocketAddr::from((port.host_address, port.host_port)).into())?;
    if kind == Type::STREAM {
        socket.listen(1)?;
    }
    Ok(Some(socket))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn request(protocol: Protocol, host_port: Option<u16>) -> PortRequest {
        PortRequest {
            host_address: Ipv4Addr::LOCALHOST,
            host_port,
            container_port: 80,
            protocol,
        }
    }

    #[test]
    fn a_held_port_is_nobody_elses() {
        let ports = HostPorts::default();
        let held = ports
            .hold(&[request(Protocol::Tcp, None), request(Protocol::Udp, None)])
            .unwrap();
        let [tcp, udp] = [held[0].port.host_port, held[1].port.host_port];
        assert!(DYNAMIC.contains(&tcp) && DYNAMIC.contains(&udp));
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, tcp)).is_err());
        assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, udp)).is_err());
        drop(held);
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, tcp)).is_ok());
    }

    #[test]
    fn a_port_somebody_has_is_refused_and_nothing_is_held() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = listener.local_addr().unwrap().port();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let other = free.local_addr().unwrap().port();
        drop(free);
        let error = HostPorts::default()
            .hold(&[
                request(Protocol::Tcp, Some(other)),
                request(Protocol::Tcp, Some(taken)),
            ])
            .unwrap_err();
        assert!(matches!(error, PortError::InUse { port, .. } if port == taken));
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, other)).is_ok());
    }

    #[test]
    fn an_address_the_host_lacks_is_refused() {
        let request = PortRequest {
            host_address: Ipv4Addr::new(203, 0, 113, 77),
            ..request(Protocol::Tcp, Some(8080))
        };
        let error = HostPorts::default().hold(&[request]).unwrap_err();
        assert!(
            matches!(error, PortError::NoSuchAddress { .. }),
            "{error:?}"
        );
    }
}
