//! Removes a run's topics.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

use crate::workload::TABLES;

/// Those whose names begin so. What cannot be removed stays: names are never used again.
pub(crate) async fn remove(bootstrap: &str, name: &str) {
    let admin: Result<AdminClient<DefaultClientContext>, _> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create();
    let Ok(admin) = admin else { return };
    let topics = TABLES.iter().chain(&["progress"]);
    let topics: Vec<String> = topics.map(|topic| format!("{name}.{topic}")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let _ = admin.delete_topics(&topics, &AdminOptions::new()).await;
}
