//! The Dockerfile.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lockstep_image::{dockerfile, image, root, yaml};
use lockstep_kit::Component::Containers;
use lockstep_kit::{containers, require};
use serde_json::{Value, json};

#[test]
fn it_is_taken_without_a_warning() {
    require!(Containers);
    let read = containers::image(&dockerfile()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read["warnings"], json!([]));
}

/// The only container of the chart's smallest release, and its pod.
fn of_the_chart() -> (Value, Value) {
    let text = std::fs::read_to_string(root().join("tests/chart/snapshots/one.yaml"));
    let objects = yaml::documents(&text.expect("what the chart renders"));
    let mut objects = objects.into_iter();
    let deployment = objects.find(|object| object["kind"] == "Deployment");
    let mut pod = deployment.expect("a deployment")["spec"]["template"]["spec"].take();
    (pod["containers"][0].take(), pod)
}

#[test]
fn it_is_what_the_chart_expects() {
    require!(Containers);
    let image = image();
    let (container, pod) = of_the_chart();
    let context = &pod["securityContext"];
    let user = format!("{}:{}", context["runAsUser"], context["runAsGroup"]);
    assert_eq!(image["User"], json!(user));
    assert_ne!(context["runAsUser"], 0);
    let name = container["image"].as_str().expect("a name");
    assert_eq!(name, format!("lockstep:{}", env!("CARGO_PKG_VERSION")));
    // The chart calls the command by its name.
    let path = image["Env"][0]
        .as_str()
        .and_then(|set| set.strip_prefix("PATH="));
    let called = container["command"][0].as_str().expect("a command");
    let program = format!("{}/{called}", path.expect("a PATH"));
    assert_eq!(image["Entrypoint"], json!([program]));
    assert_eq!(
        image["Healthcheck"]["Test"],
        json!(["CMD", program, "status"])
    );
    assert_eq!(image["StopSignal"], "SIGTERM");
    let port = container["ports"][0]["containerPort"].as_u64();
    let exposed = format!("{}/tcp", port.expect("a port"));
    assert!(image["ExposedPorts"].get(&exposed).is_some(), "{exposed}");
    // All that may be written is mounted in the chart: the root is read-only there.
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let written: Vec<&Value> = mounts
        .iter()
        .filter(|mount| mount["readOnly"] != true)
        .map(|mount| &mount["mountPath"])
        .collect();
    let state = &image["WorkingDir"];
    assert_eq!(written, [state, &json!("/tmp")]);
    assert_eq!(
        image["Volumes"],
        json!({ state.as_str().expect("a folder"): {} })
    );
}

#[test]
fn its_labels_and_its_bases_are_those_of_the_workspace() {
    require!(Containers);
    let image = image();
    let label = |name: &str| image["Labels"][format!("org.opencontainers.image.{name}")].clone();
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(label("licenses"), env!("CARGO_PKG_LICENSE"));
    let text = std::fs::read_to_string(dockerfile()).expect("the Dockerfile");
    let bases: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("FROM "))
        .collect();
    let version = env!("CARGO_PKG_RUST_VERSION");
    let compiler = format!("rust:{version}.0-bookworm AS build");
    assert_eq!(bases, [compiler.as_str(), "scratch"]);
    // A name that is no stage's would be an image's.
    let copied: Vec<&str> = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--from="))
        .collect();
    assert_eq!(copied, ["build"]);
}

/// What cargo says that `lockstep` was made of, below the project's folder.
fn made_of() -> BTreeSet<String> {
    let test = std::env::current_exe().expect("the test program has a path");
    let folder = test.parent().and_then(Path::parent);
    let list = folder.expect("target/<profile>/deps").join("lockstep.d");
    let text = std::fs::read_to_string(&list);
    let text =
        text.unwrap_or_else(|error| panic!("{}: {error}: cargo build -p lockstep", list.display()));
    let (_, files) = text.split_once(": ").expect("a rule of make");
    let below = |file: &str| {
        let file = Path::new(file).strip_prefix(root()).ok()?;
        Some(file.display().to_string())
    };
    files.split_whitespace().filter_map(below).collect()
}

#[test]
fn a_build_is_given_what_it_needs_and_little_more() {
    require!(Containers);
    let given = containers::context(&dockerfile(), &root());
    let given = given.unwrap_or_else(|error| panic!("{error}"));
    for not in ["target/", ".git/", ".lockstep/", "deploy/", "docs/adr/"] {
        let other = given.iter().find(|file| file.starts_with(not));
        assert_eq!(other, None, "a build is given {not}");
    }
    let needed = made_of();
    assert!(needed.len() > 100, "{needed:?}");
    let given: BTreeSet<String> = given.into_iter().collect();
    let missing: Vec<_> = needed.difference(&given).collect();
    assert!(missing.is_empty(), "a build is not given {missing:?}");
    // Cargo looks at the manifest of every member, and at the files that those name.
    let folder = tempfile::tempdir().expect("a folder");
    for file in &given {
        let to = folder.path().join(file);
        std::fs::create_dir_all(to.parent().expect("below the folder")).expect("a folder");
        std::fs::copy(root().join(file), to).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let words = [
        "metadata",
        "--offline",
        "--locked",
        "--no-deps",
        "--format-version=1",
    ];
    let mut cargo = Command::new(env!("CARGO"));
    let ended = cargo.args(words).current_dir(folder.path()).output();
    let ended = ended.expect("cargo can be started");
    assert!(ended.status.success(), "{ended:?}");
}
