//! Whole-system tests, the comparison benchmark and the demo.
#![forbid(unsafe_code)]
