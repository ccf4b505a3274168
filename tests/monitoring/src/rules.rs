//! The alerts of `deploy/prometheus/rules.yaml`.

use yaml_rust2::{Yaml, YamlLoader};

use crate::root;

/// One alert.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// What must have a result for it.
    pub expr: String,
    /// The label.
    pub severity: String,
    /// `summary`, `description` and `runbook_url`, in the order of the file.
    pub annotations: Vec<(String, String)>,
}

/// All alerts, in the order of the file.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The file.
    pub text: String,
    /// What is in it.
    pub alerts: Vec<Alert>,
}

impl Rules {
    /// Those that are shipped.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn shipped() -> Self {
        let path = root().join("deploy/prometheus/rules.yaml");
        let text = std::fs::read_to_string(&path);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Rules::parse(text)
    }

    /// Those of a file.
    ///
    /// # Panics
    /// When it is no YAML, or an alert lacks something.
    #[must_use]
    pub fn parse(text: String) -> Self {
        let documents = YamlLoader::load_from_str(&text).expect("YAML");
        let groups = documents[0]["groups"].as_vec().expect("groups");
        let rules = groups.iter().flat_map(|group| {
            let rules = group["rules"].as_vec();
            rules.unwrap_or_else(|| panic!("a group without rules: {group:?}"))
        });
        let alerts = rules.map(Alert::parse).collect();
        Rules { text, alerts }
    }

    /// What the first comparison of an alert's expression compares with.
    ///
    /// # Panics
    /// When there is no such alert, or its threshold is not written as a number, a power, or a number times a power.
    #[must_use]
    pub fn threshold(&self, alert: &str) -> f64 {
        let found = self.alerts.iter().find(|one| one.name == alert);
        let found = found.unwrap_or_else(|| panic!("no alert {alert}"));
        first_threshold(&found.expr)
            .unwrap_or_else(|| panic!("no threshold in {alert}: {}", found.expr))
    }
}

impl Alert {
    fn parse(rule: &Yaml) -> Self {
        let text = |value: &Yaml, what: &str| {
            let text = value[what].as_str();
            text.unwrap_or_else(|| panic!("no {what} in {rule:?}"))
                .to_owned()
        };
        let annotations = rule["annotations"].as_hash().expect("annotations");
        let annotation =
            |(name, value): (&Yaml, &Yaml)| Some((name.as_str()?.into(), value.as_str()?.into()));
        Alert {
            name: text(rule, "alert"),
            expr: text(rule, "expr"),
            severity: text(&rule["labels"], "severity"),
            annotations: annotations.iter().filter_map(annotation).collect(),
        }
    }
}

fn first_threshold(expr: &str) -> Option<f64> {
    let (_, rest) = expr.split_once(['<', '>'])?;
    let words = rest.split_whitespace();
    let product = words
        .take_while(|word| *word == "*" || power(word).is_some())
        .collect::<Vec<_>>();
    let factors = product.into_iter().filter_map(power);
    factors.reduce(|one, other| one * other)
}

/// A number, or one to the power of another.
fn power(word: &str) -> Option<f64> {
    match word.split_once('^') {
        None => word.parse().ok(),
        Some((base, exponent)) => {
            let (base, exponent): (f64, f64) = (base.parse().ok()?, exponent.parse().ok()?);
            Some(base.powf(exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::first_threshold;

    #[test]
    fn a_threshold_is_what_the_first_comparison_compares_with() {
        for (expr, threshold) in [
            ("a > 300", Some(300.0)),
            ("a / b < 0.25", Some(0.25)),
            ("a > 10 * 2^30", Some(10_737_418_240.0)),
            ("(a or b * 0 + 2^30\n) > 3600\nunless c > 0", Some(3600.0)),
            ("a == 0", None),
            ("a > b", None),
        ] {
            assert_eq!(first_threshold(expr), threshold, "{expr}");
        }
    }
}
