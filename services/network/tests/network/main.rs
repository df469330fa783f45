//! The network with a real kernel: needs root, iproute2 and nftables.
//!
//! Every test runs on a host of its own (see `world`) and ends in the audit
//! that nothing is left.

mod crash;
mod endpoints;
mod publishing;
mod world;
