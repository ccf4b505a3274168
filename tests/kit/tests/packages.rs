//! What may be built in, by `deny.toml`, without the network: licences, sources, and the packages that are not wanted. Advisories are
//! looked up by `make audit`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let (_, list) = text.split_once("\nallow = [").expect("a list of licences");
    let (list, _) = list.split_once(']').expect("its end");
    let licences = list.split(',').map(|one| one.trim().trim_matches('"'));
    licences
        .filter(|one| !one.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether an SPDX expression can be met with the licences: each of what `AND` joins, by one of what `OR` (or the older `/`) joins.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    let one = |licence: &str| allowed.contains(licence.trim());
    expression
        .split(" AND ")
        .all(|part| part.split(" OR ").any(one))
}

#[test]
fn licences_and_sources_are_those_that_are_allowed() {
    let answer = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo can be started");
    assert!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    let metadata: Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    let allowed = allowed();
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "{} packages", packages.len());
    let mut wrong = Vec::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let is_ours = package["source"].is_null();
        if !is_ours && text("source") != "registry+https://github.com/rust-lang/crates.io-index" {
            wrong.push(format!("{} comes from {}", text("name"), text("source")));
        }
        if !is_met(text("license"), &allowed) {
            wrong.push(format!("{} has {:?}", text("name"), text("license")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_built_by_default_has_one_tls_implementation() {
    for unwanted in ["aws-lc-sys", "native-tls", "openssl-sys"] {
        let answer = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "-p",
                "lockstep",
                "--edges",
                "normal,build",
            ])
            .args(["--target", "x86_64-unknown-linux-gnu", "--prefix", "none"])
            .current_dir(root())
            .output()
            .expect("cargo can be started");
        let tree = String::from_utf8_lossy(&answer.stdout);
        assert!(answer.status.success() && tree.contains("\nrustls v"));
        let found = tree.lines().find(|line| line.starts_with(unwanted));
        assert_eq!(found, None);
    }
}

#[test]
fn expressions_are_met_by_their_alternatives() {
    let allowed = BTreeSet::from(["MIT", "ISC"].map(str::to_owned));
    for met in [
        "MIT",
        "MIT OR GPL-3.0",
        "Apache-2.0/MIT",
        "(MIT OR X) AND ISC",
    ] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for not in ["", "GPL-3.0", "MIT AND GPL-3.0", "(X OR Y) AND MIT"] {
        assert!(!is_met(not, &allowed), "{not}");
    }
}
