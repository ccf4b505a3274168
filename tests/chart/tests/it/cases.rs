//! The values that the chart is rendered with.

use std::path::PathBuf;

use lockstep_chart::helm::Helm;
use lockstep_chart::root;

/// Values, by name.
pub struct Case {
    pub name: &'static str,
    pub values: PathBuf,
}

/// All of them: those of the tests, and the examples.
pub fn all() -> Vec<Case> {
    let ours = ["one", "shared", "elsewhere", "everything"].map(|name| Case {
        name,
        values: root().join(format!("tests/chart/values/{name}.yaml")),
    });
    let examples = ["shop", "operators"].map(|name| Case {
        name,
        values: root().join(format!("deploy/helm/examples/{name}.yaml")),
    });
    ours.into_iter().chain(examples).collect()
}

impl Case {
    /// What Helm makes of it. Rules and dashboards are left out, which have tests of their own, elsewhere.
    pub fn rendered(&self, helm: &Helm, more: &[&str]) -> String {
        let without = [
            "--set",
            "metrics.prometheusRule.enabled=false,metrics.dashboards.enabled=false",
        ];
        let more = [&without[..], more].concat();
        helm.template("shop", &[&self.values], &more).output()
    }
}
