//! What every transform promises, of each of them.

use lockstep_conformance::transform::TransformUnderTest;
use lockstep_core::Result;
use lockstep_core::transform::{Transform, TransformContext, TransformFactory};
use lockstep_transforms::{Dedupe, Filter, Map, Mask, Outbox, Project, Route};
use serde_json::{Value, json};

fn of<F: TransformFactory>(section: Value) -> impl TransformUnderTest {
    move |context: TransformContext| -> Result<Box<dyn Transform>> {
        let config: F::Config = serde_json::from_value(section.clone()).expect("a section");
        F::validate(&config).expect("a valid section");
        F::open(&config, context)
    }
}

macro_rules! transforms {
    ($($name:ident: $factory:ident, $section:expr;)*) => {$(
        mod $name {
            use super::*;

            fn make() -> impl TransformUnderTest {
                of::<$factory>($section)
            }

            lockstep_conformance::transform_suite!(make);
        }
    )*};
}

transforms! {
    dedupe: Dedupe, json!({"key": ["note"], "window": "24h"});
    dedupe_that_tags: Dedupe, json!({"key": ["note"], "window": "24h", "action": "tag"});
    filter: Filter, json!({"where": "id > 40"});
    filter_by_an_expression: Filter, json!({"when": "id > 40 && note != 'n3'"});
    map: Map, json!({"set": {"note": "note + '!'", "twice": "id * 2", "same": "status"}});
    map_that_fails: Map, json!({"set": {"share": "100 / (id % 5)"}});
    mask: Mask, json!({"hash": ["status"], "redact": ["note"], "salt": "0123456789abcdef0123456789abcdef"});
    outbox: Outbox, json!({"tables": ["*.items"], "id": "id", "key": "id", "payload": "note", "topic": "events", "updated": "skip"});
    project: Project, json!({"drop": ["note"], "rename": {"status": "state"}});
    route: Route, json!({"table": "{table}_by_{id}"});
    route_by_an_expression: Route, json!({"table": "{table}_even", "when": "id % 2 == 0"});
}
