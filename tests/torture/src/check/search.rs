//! Documents of OpenSearch.

use lockstep_kit::opensearch::OpenSearch;
use serde_json::{Value, json};

use super::rows::Rows;

const PAGE: usize = 2_000;

/// All documents of an index.
pub(super) async fn read(server: &OpenSearch, index: &str) -> Result<Rows, String> {
    let ask = async |method: &str, path: &str, body: &Value| -> Result<Value, String> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = server.request(method, path, &body).await;
        let (status, text) = answer.map_err(|error| format!("{index}: {error}"))?;
        if status != 200 {
            return Err(format!("{index}: {status} {text}"));
        }
        serde_json::from_str(&text).map_err(|error| format!("{index}: {error}: {text}"))
    };
    ask("POST", &format!("/{index}/_refresh"), &Value::Null).await?;
    let search = json!({"size": PAGE, "sort": ["_doc"], "query": {"match_all": {}}});
    let mut page = ask("POST", &format!("/{index}/_search?scroll=1m"), &search).await?;
    let mut rows = Rows::new();
    loop {
        let hits = page["hits"]["hits"].as_array().cloned().unwrap_or_default();
        if hits.is_empty() {
            let scroll = json!({"scroll_id": [page["_scroll_id"]]});
            ask("DELETE", "/_search/scroll", &scroll).await?;
            return Ok(rows);
        }
        for hit in &hits {
            let id = hit["_id"].as_str().and_then(|id| id.parse().ok());
            let id = id.ok_or_else(|| format!("{index}: the id {}", hit["_id"]))?;
            rows.insert(id, hit["_source"].clone());
        }
        let scroll = json!({"scroll": "1m", "scroll_id": page["_scroll_id"]});
        page = ask("POST", "/_search/scroll", &scroll).await?;
    }
}
