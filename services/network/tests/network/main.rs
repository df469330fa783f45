//! The network with a real kernel: needs root, iproute2 and nftables.
//!
//! Every test runs on a host of its own (see `world`) and ends in the audit
//! that nothing is left.

#![allow(
    clippy::unwrap_used,
    reason = "what a test sets up either works or fails the test"
)]

mod churn;
mod crash;
mod endpoints;
mod publishing;
mod side_by_side;
mod world;
