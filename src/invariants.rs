//! What `lockstep reconcile` says of invariants.

use std::time::Duration;

use indicatif::ProgressBar;
use lockstep_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{count, duration};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// Keys that are shown of those that do not hold.
const SHOWN: usize = 20;

/// How invariants stand, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// One is violated.
    pub violated: bool,
    /// Of one it cannot be told.
    pub partial: bool,
}

/// Evaluates the invariants of a running pipeline, or the one that is named; none where it has none.
///
/// # Errors
/// When the pipeline cannot be asked, has no invariant of that name, or is restarted meanwhile.
pub async fn evaluate(endpoint: &Client<'_>, name: Option<&str>) -> Result<Option<Value>> {
    if name.is_none() {
        let view = endpoint.get("/api/invariants").await?;
        if view["declared"].as_array().is_none_or(Vec::is_empty) {
            return Ok(None);
        }
    }
    let body = json!({ "invariant": name });
    let taken = endpoint.post("/api/invariants", &body).await?;
    let id = &taken["id"];
    // On a terminal only.
    let bar = ProgressBar::new_spinner();
    loop {
        let view = endpoint.get("/api/invariants").await?;
        let asked = view["asked"].as_array().into_iter().flatten();
        let Some(one) = asked.into_iter().find(|one| one["id"] == *id) else {
            let what = format!("evaluation {id} is not known any more");
            return Err(Error::new(ErrorKind::Unavailable, what)
                .remedy("see the log of the pipeline, which was restarted perhaps"));
        };
        if one["done"] == true {
            bar.finish_and_clear();
            return Ok(Some(one.clone()));
        }
        let done = one["reports"].as_array().map_or(0, Vec::len);
        bar.set_message(format!("invariants: {done} of {}", one["invariants"]));
        bar.tick();
        tokio::time::sleep(LOOK).await;
    }
}

/// There is nothing to look at.
pub fn none() -> Error {
    Error::new(ErrorKind::Invalid, "the pipeline has no invariants")
        .remedy("declare them as [[reconcile.invariants]] and start it again")
}

fn reports(one: &Value) -> impl Iterator<Item = &Value> {
    one["reports"].as_array().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// How they stand.
pub fn judge(one: &Value) -> Verdict {
    let is_partial = |report: &Value| {
        let open = number(&report["in_doubt"]) + number(&report["undecided"]);
        report["state"] != "done" || open > 0
    };
    Verdict {
        violated: reports(one).any(|report| number(&report["violated"]) > 0),
        partial: reports(one).any(is_partial)
            || reports(one).count() as u64 != number(&one["invariants"]),
    }
}

/// For people.
pub fn table(one: &Value, now_micros: i64) -> String {
    let mut out = format!(
        "{:<36} {:<14} {:>10} {:>9} {:>9} {:>9} {:>9}  result\n",
        "invariant", "rule", "keys", "violated", "in doubt", "undecided", "pending"
    );
    let mut broken = String::new();
    for report in reports(one) {
        let name = text(&report["invariant"]);
        let figure = |word: &str| count(number(&report[word]));
        let result = match report["problem"].as_str() {
            Some(problem) => problem.to_owned(),
            None if number(&report["violated"]) > 0 => "violated".to_owned(),
            None if number(&report["in_doubt"]) > 0 => {
                "cannot be told while prepared transactions are not decided".to_owned()
            }
            None if number(&report["undecided"]) > 0 => "not decided: run it again".to_owned(),
            None => "holds".to_owned(),
        };
        out += &format!(
            "{name:<36} {:<14} {:>10} {:>9} {:>9} {:>9} {:>9}  {result}\n",
            text(&report["rule"]),
            figure("keys"),
            figure("violated"),
            figure("in_doubt"),
            figure("undecided"),
            figure("pending"),
        );
        let all = report["broken"].as_array().map_or(&[][..], Vec::as_slice);
        for one in all.iter().take(SHOWN) {
            broken += &lines(name, &report["key"], one, now_micros);
        }
        let open = ["violated", "in_doubt", "undecided", "pending"];
        let open: u64 = open.iter().map(|word| number(&report[*word])).sum();
        let left = open.saturating_sub(all.len().min(SHOWN) as u64);
        if left > 0 {
            broken += &format!("{name} … and {} more\n", count(left));
        }
    }
    match broken.is_empty() {
        true => out,
        false => format!("{out}\n{broken}"),
    }
}

/// A key that does not hold, and its rows below it.
fn lines(name: &str, columns: &Value, one: &Value, now_micros: i64) -> String {
    let columns = columns.as_array().into_iter().flatten().map(text);
    let values = one["key"].as_array().into_iter().flatten().map(text);
    let key: Vec<String> = columns
        .zip(values)
        .map(|(column, value)| format!("{column}={value}"))
        .collect();
    let since = one["since_micros"].as_i64().unwrap_or(now_micros);
    let since = Duration::from_micros(now_micros.saturating_sub(since).unsigned_abs());
    let mut out = format!(
        "{name} {} {}: {}, for {}\n",
        text(&one["standing"]).replace('_', " "),
        key.join(" "),
        text(&one["why"]),
        duration(since),
    );
    for (source, rows) in one["rows"].as_object().into_iter().flatten() {
        for row in rows.as_array().into_iter().flatten() {
            out += &format!("    {source}: {row}\n");
        }
    }
    if number(&one["more"]) > 0 {
        out += &format!("    … and {} rows more\n", count(number(&one["more"])));
    }
    for waits in one["waits_for"].as_array().into_iter().flatten() {
        let what = match waits["gid"].as_str() {
            Some(gid) => format!("prepared transaction {gid}"),
            None => format!("transaction {}", waits["xid"]),
        };
        out += &format!("    waits for {what} in {}\n", text(&waits["source"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(report: Value) -> Value {
        json!({ "invariants": 1, "done": true, "reports": [report] })
    }

    fn report(violated: u64, in_doubt: u64) -> Value {
        json!({
            "invariant": "reserved", "rule": "equal", "key": ["order_id"], "state": "done", "keys": 1_000,
            "violated": violated, "in_doubt": in_doubt, "undecided": 0, "pending": 0, "problem": null,
            "broken": [{
                "key": ["7"], "standing": "violated", "why": "quantity differs", "since_micros": 1_000_000,
                "rows": { "orders": [{ "quantity": "2" }], "inventory": [] }, "more": 0,
                "waits_for": [{ "source": "orders", "xid": 5, "gid": "g" }],
            }],
        })
    }

    #[test]
    fn a_violation_is_told_with_its_rows_and_since_when() {
        let one = evaluation(report(22, 0));
        let told = table(&one, 61_000_000);
        for words in [
            "reserved violated order_id=7: quantity differs, for 1 min",
            "    orders: {\"quantity\":\"2\"}",
            "waits for prepared transaction g in orders",
            "… and 21 more",
        ] {
            assert!(told.contains(words), "{words} in\n{told}");
        }
    }

    #[test]
    fn what_is_violated_comes_before_what_cannot_be_told() {
        let verdict = |violated, partial| Verdict { violated, partial };
        assert_eq!(judge(&evaluation(report(0, 0))), verdict(false, false));
        assert_eq!(judge(&evaluation(report(1, 0))), verdict(true, false));
        assert_eq!(judge(&evaluation(report(0, 1))), verdict(false, true));
        let missing = json!({ "invariants": 2, "reports": [report(0, 0)] });
        assert_eq!(judge(&missing), verdict(false, true));
        let mut failed = report(0, 0);
        failed["state"] = "failed".into();
        assert_eq!(judge(&evaluation(failed)), verdict(false, true));
    }
}
