//! Bridges, address pools, endpoints, firewall and published ports.
#![forbid(unsafe_code)]
