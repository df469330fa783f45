//! Image store: content, images, layers, writable layers; pull and push.
#![forbid(unsafe_code)]

pub mod unpack;
