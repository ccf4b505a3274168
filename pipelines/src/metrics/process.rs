//! The process's own memory, CPU and file descriptors, under their usual names.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;

/// See the module's page.
#[derive(Clone)]
pub(super) struct Process(Arc<ProcessCollector>);

impl Process {
    pub fn new() -> Self {
        Process(Arc::new(ProcessCollector::for_self()))
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.collect()
    }
}
