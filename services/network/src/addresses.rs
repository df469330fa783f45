//! The address pool of one network (IPAM).
//!
//! Addresses that were never used go first, in order; then released ones, the
//! one that was released longest ago first. A neighbour that still remembers
//! an ended endpoint thus meets its successor as late as can be.
//!
//! The pool holds no file: what is in use follows from the records of the
//! sandboxes, and the order of release from their journal (see `store`).

use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;

use crate::subnet::Subnet;

/// Why an address cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Every address is in use.
    Exhausted,
    /// This one is in use.
    InUse,
    /// This one is not one that an endpoint of the subnet may have.
    Outside,
}

#[derive(Debug)]
pub(crate) struct AddressPool {
    subnet: Subnet,
    gateway: Ipv4Addr,
    /// Offset into the subnet below which every address was used once.
    fresh: u32,
    /// Released addresses, the longest ago first. All are below `fresh`.
    released: VecDeque<Ipv4Addr>,
    used: HashSet<Ipv4Addr>,
}

impl AddressPool {
    pub(crate) fn new(subnet: Subnet, gateway: Ipv4Addr) -> Self {
        Self {
            subnet,
            gateway,
            fresh: 1,
            released: VecDeque::new(),
            used: HashSet::new(),
        }
    }

    /// The address whose turn it is.
    pub(crate) fn take(&mut self) -> Result<Ipv4Addr, Refusal> {
        let base = self.subnet.network().to_bits();
        let end = self.subnet.broadcast().to_bits() - base;
        while self.fresh < end {
            let address = Ipv4Addr::from_bits(base + self.fresh);
            self.fresh += 1;
            if address != self.gateway && self.used.insert(address) {
                return Ok(address);
            }
        }
        let address = self.released.pop_front().ok_or(Refusal::Exhausted)?;
        self.used.insert(address);
        Ok(address)
    }

    /// Exactly this address.
    pub(crate) fn claim(&mut self, address: Ipv4Addr) -> Result<(), Refusal> {
        if !self.subnet.has_host(address) || address == self.gateway {
            return Err(Refusal::Outside);
        }
        if !self.used.insert(address) {
            return Err(Refusal::InUse);
        }
        self.released.retain(|released| *released != address);
        Ok(())
    }

    /// Gives an address back, to the end of the queue.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        if self.used.remove(&address) && self.was_fresh(address) {
            self.released.push_back(address);
        }
    }

    /// Puts the pool where it was: `released` in order, and everything up to
    /// `last` used once.
    pub(crate) fn restore(&mut self, last: Option<Ipv4Addr>, released: &[Ipv4Addr]) {
        if let Some(last) = last
            && self.subnet.has_host(last)
        {
            let offset = last.to_bits() - self.subnet.network().to_bits();
            self.fresh = self.fresh.max(offset + 1);
        }
        for address in released {
            if self.subnet.has_host(*address)
                && *address != self.gateway
                && !self.used.contains(address)
                && self.was_fresh(*address)
            {
                self.released.push_back(*address);
            }
        }
        self.account_for_gaps();
    }

    /// Addresses below `fresh` that are neither used nor released would be
    /// lost: they count as released longest ago.
    fn account_for_gaps(&mut self) {
        let base = self.subnet.network().to_bits();
        let known: HashSet<Ipv4Addr> = self.released.iter().copied().collect();
        let gaps = (1..self.fresh)
            .map(|offset| Ipv4Addr::from_bits(base + offset))
            .filter(|address| {
                *address != self.gateway && !known.contains(address) && !self.used.contains(address)
            })
            .collect::<Vec<_>>();
        for address in gaps.into_iter().rev() {
            self.released.push_front(address);
        }
    }

    pub(crate) fn in_use(&self) -> usize {
        self.used.len()
    }

    pub(crate) fn total(&self) -> u64 {
        let all = self.subnet.broadcast().to_bits() - self.subnet.network().to_bits() - 1;
        // The gateway's own is none of the pool's.
        u64::from(all) - 1
    }

    fn was_fresh(&self, address: Ipv4Addr) -> bool {
        address.to_bits() - self.subnet.network().to_bits() < self.fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str) -> AddressPool {
        let subnet: Subnet = subnet.parse().unwrap();
        AddressPool::new(subnet, subnet.first_host())
    }

    fn last_octet(address: Ipv4Addr) -> u8 {
        address.octets()[3]
    }

    #[test]
    fn a_released_address_is_used_last() {
        let mut pool = pool("10.0.0.0/29");
        assert_eq!(pool.total(), 5);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert_eq!((last_octet(first), last_octet(second)), (2, 3));
        pool.release(second);
        pool.release(first);
        let rest: Vec<u8> = (0..5).map(|_| last_octet(pool.take().unwrap())).collect();
        assert_eq!(rest, [4, 5, 6, 3, 2]);
        assert_eq!(pool.take(), Err(Refusal::Exhausted));
        assert_eq!(pool.in_use() as u64, pool.total());
    }

    #[test]
    fn an_address_that_was_asked_for_is_not_given_out_twice() {
        let mut pool = pool("10.0.0.0/29");
        let wanted = Ipv4Addr::new(10, 0, 0, 3);
        pool.claim(wanted).unwrap();
        assert_eq!(pool.claim(wanted), Err(Refusal::InUse));
        let taken: Vec<u8> = (0..4).map(|_| last_octet(pool.take().unwrap())).collect();
        assert_eq!(taken, [2, 4, 5, 6]);
        pool.release(wanted);
        assert_eq!(pool.take().unwrap(), wanted);
    }

    #[test]
    fn addresses_that_no_endpoint_may_have_are_refused() {
        let mut pool = pool("10.0.0.0/29");
        for last in [0, 1, 7, 8] {
            let address = Ipv4Addr::new(10, 0, 0, last);
            assert_eq!(pool.claim(address), Err(Refusal::Outside), "{address}");
        }
    }

    #[test]
    fn a_restored_pool_goes_on_where_it_was() {
        let mut pool = pool("10.0.0.0/29");
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        pool.claim(address(3)).unwrap();
        pool.restore(Some(address(5)), &[address(4), address(2)]);
        let taken: Vec<u8> = (0..4).map(|_| last_octet(pool.take().unwrap())).collect();
        assert_eq!(taken, [6, 5, 4, 2]);
        assert_eq!(pool.take(), Err(Refusal::Exhausted));
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is taken, claimed and released in whatever order, no
        /// address is ever in two hands and none is lost.
        #[test]
        fn no_address_is_held_twice_or_lost(steps in prop::collection::vec((0u8..3, 0u8..16), 0..200)) {
            let subnet: Subnet = "10.0.0.0/28".parse().unwrap();
            let mut pool = AddressPool::new(subnet, subnet.first_host());
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for (step, operand) in steps {
                match step {
                    0 => match pool.take() {
                        Ok(address) => {
                            prop_assert!(!held.contains(&address));
                            held.push(address);
                        }
                        Err(refusal) => {
                            prop_assert_eq!(refusal, Refusal::Exhausted);
                            prop_assert_eq!(held.len() as u64, pool.total());
                        }
                    },
                    1 => {
                        let address = Ipv4Addr::new(10, 0, 0, operand);
                        if pool.claim(address).is_ok() {
                            prop_assert!(!held.contains(&address));
                            held.push(address);
                        }
                    }
                    _ => if !held.is_empty() {
                        pool.release(held.remove(usize::from(operand) % held.len()));
                    },
                }
                prop_assert_eq!(pool.in_use(), held.len());
            }
            for address in held.drain(..) {
                pool.release(address);
            }
            for _ in 0..pool.total() {
                prop_assert!(pool.take().is_ok());
            }
        }
    }
}
