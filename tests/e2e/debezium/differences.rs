//! Where we differ from Debezium 3.6.3 on purpose, each with its reason. `sinks/encode/README.md` tells users.

use crate::compare::Difference;

/// All values of `decimal.handling.mode`.
const ALL: &[&str] = &["string", "precise", "double"];

/// What stands for a value that the log does not carry, as bytes.
const PLACEHOLDER_BYTES: &str = "[95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,98,108,101,95,118,97,108,117,101]";

/// A difference that is meant.
pub struct Allowed {
    /// Why.
    pub reason: &'static str,
    /// With which forms of decimals it must be seen.
    pub modes: &'static [&'static str],
    /// Which differences it explains.
    pub matches: fn(&Difference) -> bool,
}

impl Allowed {
    pub fn explains(&self, difference: &Difference) -> bool {
        (self.matches)(difference)
    }
}

fn theirs_is(difference: &Difference, json: &str) -> bool {
    difference.theirs.as_deref() == Some(json)
}

fn ours_is(difference: &Difference, json: &str) -> bool {
    difference.ours.as_deref() == Some(json)
}

fn is_column(difference: &Difference, topic: &str, columns: &[&str]) -> bool {
    difference.topic == topic
        && difference
            .path
            .strip_prefix("after.")
            .is_some_and(|column| columns.contains(&column))
}

/// The number behind the comma of `"[\"1\",\"2\"]"`.
fn lsn_of_sequence(sequence: &Option<String>) -> Option<&str> {
    sequence.as_deref()?.split_once(',').map(|(_, lsn)| lsn)
}

/// The list.
pub const ALLOWED: &[Allowed] = &[
    Allowed {
        reason: "Debezium loses `name` in the stream",
        modes: ALL,
        matches: |difference| {
            !difference.snapshot
                && is_column(difference, "public.types", &["c_name"])
                && theirs_is(difference, "null")
        },
    },
    Allowed {
        reason: "Debezium replaces NULL by the column's default",
        modes: ALL,
        matches: |difference| {
            is_column(difference, "public.defaults", &["a", "b", "s"])
                && ours_is(difference, "null")
        },
    },
    Allowed {
        reason: "Debezium invents values for columns of a deleted row that the log does not carry",
        modes: ALL,
        matches: |difference| {
            !difference.snapshot
                && difference.path.starts_with("before.")
                && difference.record.ends_with("\"d\"")
                && ours_is(difference, "null")
        },
    },
    Allowed {
        reason: "Debezium overflows on dates at the ends of time; ours are the ends of a 32-bit integer",
        modes: ALL,
        matches: |difference| {
            is_column(difference, "public.types", &["c_date"])
                && (ours_is(difference, "2147483647") || ours_is(difference, "-2147483648"))
                || is_column(difference, "public.arrays", &["a_date"])
                    && ours_is(difference, "[2147483647,-2147483648]")
        },
    },
    Allowed {
        reason: "Debezium's snapshot counts dates before 1582-10-15 in the Julian calendar, its stream does not",
        modes: ALL,
        matches: |difference| {
            difference.snapshot
                && is_column(difference, "public.types", &["c_date"])
                && (ours_is(difference, "-735160") || ours_is(difference, "-141432"))
        },
    },
    Allowed {
        reason: "Debezium overflows on timestamps after the year 294247; ours is the true number",
        modes: ALL,
        matches: |difference| {
            is_column(difference, "public.types", &["c_timestamp"])
                && ours_is(difference, "9224318015999999999")
        },
    },
    Allowed {
        reason: "Debezium writes null for a numeric that is not a number",
        modes: &["precise"],
        matches: |difference| {
            is_column(difference, "public.types", &["c_numeric", "c_numeric_10_2"])
                && theirs_is(difference, "null")
                && ["\"NaN\"", "\"Infinity\"", "\"-Infinity\""]
                    .iter()
                    .any(|word| ours_is(difference, word))
        },
    },
    Allowed {
        reason: "Debezium writes null for a whole array in which one numeric is not a number",
        modes: ALL,
        matches: |difference| {
            is_column(difference, "public.arrays", &["a_numeric"]) && theirs_is(difference, "null")
        },
    },
    Allowed {
        reason: "Debezium destroys arrays of more than one dimension",
        modes: ALL,
        matches: |difference| {
            is_column(difference, "public.arrays", &["a_int4", "a_text"])
                && difference
                    .ours
                    .as_deref()
                    .is_some_and(|ours| ours.starts_with("[["))
        },
    },
    Allowed {
        reason: "Debezium writes null for arrays of bit strings",
        modes: ALL,
        matches: |difference| {
            is_column(difference, "public.arrays", &["a_bit1", "a_bit3"])
                && theirs_is(difference, "null")
        },
    },
    Allowed {
        reason: "Debezium cuts the microseconds of times in arrays",
        modes: ALL,
        matches: |difference| {
            is_column(difference, "public.arrays", &["a_time"])
                && ours_is(difference, "[49890123456]")
        },
    },
    Allowed {
        reason: "Debezium leaves out arrays of some types whose single values it writes",
        modes: ALL,
        matches: |difference| {
            let columns = [
                "a_money",
                "a_name",
                "a_xml",
                "a_price",
                "a_point",
                "a_interval",
            ];
            is_column(difference, "public.arrays", &columns) && difference.theirs.is_none()
        },
    },
    Allowed {
        reason: "Debezium writes null for some unchanged large values, as if they were NULL",
        modes: ALL,
        matches: |difference| {
            let columns = [
                "b_numeric",
                "b_varbit",
                "b_int2_array",
                "b_float8_array",
                "b_numeric_array",
                "b_bool_array",
                "b_timestamp_array",
                "b_timestamptz_array",
                "b_mood_array",
            ];
            let placeholders = [
                "\"__debezium_unavailable_value\"",
                "[\"__debezium_unavailable_value\"]",
                "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"",
                PLACEHOLDER_BYTES,
            ];
            !difference.snapshot
                && is_column(difference, "public.toast", &columns)
                && theirs_is(difference, "null")
                && placeholders.iter().any(|json| ours_is(difference, json))
        },
    },
    Allowed {
        reason: "Debezium's hstore loses the order of its keys",
        modes: ALL,
        matches: |difference| {
            let object = |text: &Option<String>| {
                let text: String = serde_json::from_str(text.as_deref()?).ok()?;
                serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&text).ok()
            };
            is_column(difference, "public.types", &["c_hstore"])
                && object(&difference.theirs).is_some()
                && object(&difference.theirs) == object(&difference.ours)
        },
    },
    Allowed {
        reason: "Debezium's JSON writer escapes characters beyond U+FFFF; the JSON means the same",
        modes: ALL,
        matches: |difference| {
            let text = |text: &Option<String>| {
                serde_json::from_str::<String>(text.as_deref().unwrap_or_default()).ok()
            };
            is_column(difference, "public.types", &["c_text"])
                && text(&difference.theirs).is_some()
                && text(&difference.theirs) == text(&difference.ours)
        },
    },
    Allowed {
        reason: "Java before 19 does not print the shortest form of every float; the number is the same",
        modes: &[],
        matches: |difference| {
            let number =
                |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<f32>().ok());
            is_column(difference, "public.types", &["c_float4"])
                && number(&difference.theirs).is_some()
                && number(&difference.theirs) == number(&difference.ours)
        },
    },
    Allowed {
        reason: "a record with neither key nor value says nothing: we send no tombstone where there is no key",
        modes: ALL,
        matches: |difference| {
            difference.topic == "public.no_key"
                && difference.path == "record"
                && theirs_is(difference, "null")
                && difference.ours.is_none()
        },
    },
    Allowed {
        reason: "Debezium counts a message outside transactions as a commit, and then names it in records before it",
        modes: ALL,
        matches: |difference| {
            difference.path == "source.sequence"
                && lsn_of_sequence(&difference.theirs).is_some()
                && lsn_of_sequence(&difference.theirs) == lsn_of_sequence(&difference.ours)
        },
    },
    Allowed {
        reason: "the log has no time for a message outside transactions: Debezium repeats that of the commit before",
        modes: ALL,
        matches: |difference| {
            difference.topic == "message"
                && ["source.ts_ms", "source.ts_us", "source.ts_ns"]
                    .contains(&difference.path.as_str())
        },
    },
];
