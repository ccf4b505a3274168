//! What is rendered, against what somebody has looked at.

use lockstep_chart::helm::Helm;
use lockstep_chart::{chart, keeps, root};
use lockstep_kit::Component::Helm as NeedsHelm;
use lockstep_kit::require;

use crate::cases;

#[test]
fn it_is_as_it_was_looked_at() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    for case in cases::all() {
        let path = root().join(format!("tests/chart/snapshots/{}.yaml", case.name));
        keeps(&path, &case.rendered(&helm, &[]));
    }
}

#[test]
fn lint_finds_nothing() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    let chart = chart().display().to_string();
    let mut arguments = vec!["lint", "--strict", &chart];
    let bare = helm.run(&arguments);
    assert!(bare.well, "{bare}");
    arguments.push("--values");
    for case in cases::all() {
        let values = case.values.display().to_string();
        let linted = helm.run(&[&arguments[..], &[values.as_str()]].concat());
        assert!(linted.well, "{}: {linted}", case.name);
        assert!(
            !linted.stdout.contains("[WARNING]"),
            "{}: {linted}",
            case.name
        );
    }
}

/// Without pipelines there is nothing, and the notes say what to do.
#[test]
fn without_pipelines_nothing_is_made() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    let rendered = helm.template("shop", &[], &[]).output();
    assert_eq!(rendered.trim(), "");
    let chart = chart().display().to_string();
    let install = [
        "install",
        "shop",
        &chart,
        "--dry-run=client",
        "--namespace",
        "shop",
    ];
    let notes = helm.run(&install).output();
    assert!(notes.contains("There is no pipeline yet"), "{notes}");
}
