//! The coordinator against real servers, with real crashes.

mod buyer;
mod commit;
mod crashes;
mod faults;
mod guide;
mod support;
