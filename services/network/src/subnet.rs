//! An IPv4 subnet, and the hardware address that belongs to each of its hosts.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// First bytes of every hardware address: locally administered, unicast.
const MAC_PREFIX: [u8; 2] = [0x02, 0x42];

/// The smallest subnet with room for a gateway and an endpoint is a /30; the
/// largest that makes sense for one bridge is a /8.
const PREFIX_RANGE: std::ops::RangeInclusive<u8> = 8..=30;

/// A text that is no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a subnet: {reason}; write it like 10.66.0.0/16")]
pub struct SubnetError {
    pub text: String,
    pub reason: &'static str,
}

/// An IPv4 subnet whose host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

impl Subnet {
    /// None: the prefix length is none that a network here can have, or
    /// `network` has bits beyond it.
    #[must_use]
    pub fn new(network: Ipv4Addr, prefix: u8) -> Option<Self> {
        let network = network.to_bits();
        (PREFIX_RANGE.contains(&prefix) && network & !mask(prefix) == 0)
            .then_some(Self { network, prefix })
    }

    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network | !mask(self.prefix))
    }

    /// The first address that a host may have.
    #[must_use]
    pub fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network + 1)
    }

    /// Whether a host may have `address` here.
    #[must_use]
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network() && address != self.broadcast()
    }

    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network
    }

    /// Whether the two have an address in common. `prefix` may be any, as the
    /// other is a route and need not be a usable subnet.
    #[must_use]
    pub fn overlaps(self, network: Ipv4Addr, prefix: u8) -> bool {
        let common = mask(self.prefix.min(prefix));
        self.network & common == network.to_bits() & common
    }
}

/// The hardware address of the interface that has `address`: equal as long as
/// the address is, so that a neighbour's ARP entry never points to another.
#[must_use]
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [MAC_PREFIX[0], MAC_PREFIX[1], a, b, c, d]
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let wrong = |reason| SubnetError {
            text: text.to_owned(),
            reason,
        };
        let (address, prefix) = text
            .split_once('/')
            .ok_or_else(|| wrong("it has no prefix length"))?;
        let address: Ipv4Addr = address
            .parse()
            .map_err(|_| wrong("its address is not an IPv4 address"))?;
        let prefix: u8 = prefix
            .parse()
            .map_err(|_| wrong("its prefix length is not a number"))?;
        if !PREFIX_RANGE.contains(&prefix) {
            return Err(wrong("its prefix length is not 8 to 30"));
        }
        if address.to_bits() & !mask(prefix) != 0 {
            return Err(wrong("its address has bits beyond the prefix"));
        }
        Ok(Self {
            network: address.to_bits(),
            prefix,
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network(), self.prefix)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_knows_its_ends() {
        let subnet: Subnet = "10.66.0.0/16".parse().unwrap();
        assert_eq!(subnet.first_host(), Ipv4Addr::new(10, 66, 0, 1));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(10, 66, 255, 255));
        assert_eq!(subnet.mask(), Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(subnet.to_string(), "10.66.0.0/16");
        assert!(!subnet.has_host(subnet.broadcast()));
    }

    #[test]
    fn a_text_that_is_no_subnet_is_refused() {
        for bad in [
            "10.66.0.0",
            "10.66.0.1/16",
            "10.0.0.0/33",
            "10.0.0.0/31",
            "::/64",
            "x/8",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn overlap_holds_both_ways_and_not_for_neighbours() {
        let subnet: Subnet = "10.66.0.0/16".parse().unwrap();
        assert!(subnet.overlaps(Ipv4Addr::new(10, 0, 0, 0), 8));
        assert!(subnet.overlaps(Ipv4Addr::new(10, 66, 7, 0), 24));
        assert!(!subnet.overlaps(Ipv4Addr::new(10, 67, 0, 0), 16));
    }

    #[test]
    fn a_hardware_address_carries_the_address() {
        assert_eq!(
            mac_of(Ipv4Addr::new(10, 66, 0, 5)),
            [0x02, 0x42, 10, 66, 0, 5]
        );
    }
}
