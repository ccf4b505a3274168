//! Who has lost the lease writes nothing more.

use lockstep_core::refusal::reason;
use lockstep_core::sink::Sink;
use lockstep_core::token::Token;
use lockstep_core::{ErrorKind, Result};

use super::{Bench, SinkUnderTest, put, put_ok};
use crate::feed::V;

/// A holder of an older token than one that has opened the sink since is refused, and told why in a way that can be counted: with
/// what it has open, and opened anew. The newer one goes on, also when the older has got in its way.
///
/// # Panics
/// When it is not so.
pub async fn who_has_an_older_token_writes_nothing(sink: &dyn SinkUnderTest) {
    if !sink.is_fenced() {
        return;
    }
    let bench = Bench::new(sink);
    let batch = |id: u64| {
        let text = id.to_string();
        let row = [V::Text(&text), "new".into(), V::Text("gift")];
        bench
            .feed()
            .begin(id * 10)
            .insert(&bench.items, &row)
            .finish()
    };
    let open = async |token: u64| -> Result<Box<dyn Sink>> {
        bench
            .try_open_by(&[&bench.source], Some(Token(token)))
            .await
    };
    let mut former = open(5).await.expect("opens");
    put_ok(&mut former, batch(1)).await;
    let mut newer = open(7).await.expect("opens");
    let refused = put(&mut former, batch(2)).await.expect_err("it is older");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(refused.reason(), Some(reason::FENCED), "{refused}");
    drop(former);
    put_ok(&mut newer, batch(3)).await;
    let again = match open(5).await {
        Ok(mut former) => put(&mut former, batch(4)).await.map(drop),
        Err(error) => Err(error),
    };
    let refused = again.expect_err("it is older");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(refused.reason(), Some(reason::FENCED), "{refused}");
    // The older one's opening may have cost the newer one what it had open, and no more.
    if put(&mut newer, batch(5)).await.is_err() {
        drop(newer);
        newer = open(7).await.expect("opens again");
        put_ok(&mut newer, batch(5)).await;
    }
    newer.close().await.expect("closes");
    let rows = ["1", "3", "5"].map(|id| (id, "new", "gift"));
    let events = ["1", "3", "5"].map(|id| format!("c {id} new gift"));
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    bench.assert_held(&bench.items, &rows, &events).await;
}
