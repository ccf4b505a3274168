//! The container image and the compose stack: what Docker's parsers make of them, that they fit the chart and the rest of `deploy/`, and
//! that the stack's pipeline and its shop run on real servers. No image is built here.

mod image;
mod monitoring;
mod shop;
mod stack;
