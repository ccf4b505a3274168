//! The compose file, and the pipeline file that it mounts.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lockstep_chart::program;
use lockstep_image::{Service, Stack, image, text};
use lockstep_kit::Component::Containers;
use lockstep_kit::require;
use serde_json::{Value, json};

/// Whose image is ours.
const OURS: [&str; 3] = ["fill", "lockstep", "shoppers"];

#[test]
fn images_have_exact_tags() {
    require!(Containers);
    let stack = Stack::shipped();
    for (name, service) in stack.services() {
        let image = service.0["image"].as_str().expect("an image");
        let (_, tag) = image.split_once(':').unwrap_or((image, ""));
        let numbers = tag.trim_start_matches('v').split(['.', '-']);
        let numbers = numbers.take_while(|part| part.parse::<u32>().is_ok());
        assert!(numbers.count() >= 2, "{name}: {image}");
        if OURS.contains(&name) {
            assert_eq!(image, format!("lockstep:{}", env!("CARGO_PKG_VERSION")));
            let build = &service.0["build"]["dockerfile"];
            assert_eq!(build, "deploy/image/Dockerfile", "{name}");
        }
    }
}

#[test]
fn only_this_machine_is_listened_to() {
    require!(Containers);
    let stack = Stack::shipped();
    let mut taken = BTreeSet::new();
    for (name, service) in stack.services() {
        assert_eq!(service.0["network_mode"], Value::Null, "{name}");
        for port in service.0["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}: {port}");
            let published = port["published"].as_str().expect("a port");
            assert!(taken.insert(published.to_owned()), "{published} twice");
        }
    }
    assert_eq!(taken.len(), 8, "{taken:?}");
}

#[test]
fn what_is_mounted_is_there() {
    require!(Containers);
    let stack = Stack::shipped();
    let mut files = 0;
    for (name, service) in stack.services() {
        for mount in service.mounts() {
            match mount.kind {
                "bind" => {
                    assert!(mount.source.exists(), "{name}: {mount:?}");
                    assert!(mount.read_only, "{name}: {mount:?}");
                    files += 1;
                }
                "volume" => {
                    let volume = mount.source.display().to_string();
                    assert!(
                        stack.0["volumes"].get(&volume).is_some(),
                        "{name}: {mount:?}"
                    );
                }
                _ => panic!("{name}: {mount:?}"),
            }
        }
    }
    assert_eq!(files, 6);
}

/// Whether it says when it is well: itself, or by its image.
fn tells_its_health(name: &str, service: Service<'_>) -> bool {
    match &service.0["healthcheck"] {
        Value::Null => OURS.contains(&name) && image()["Healthcheck"]["Test"].is_array(),
        check => check["disable"] != true && check["test"].is_array(),
    }
}

#[test]
fn each_waits_for_what_it_needs_to_be_well() {
    require!(Containers);
    let stack = Stack::shipped();
    let services = stack.services();
    for (name, service) in &services {
        for (needed, how) in service.0["depends_on"].as_object().into_iter().flatten() {
            match how["condition"].as_str() {
                Some("service_healthy") => {
                    assert!(
                        tells_its_health(needed, services[needed.as_str()]),
                        "{name} waits for {needed}"
                    );
                }
                // What ends must not be started again when it has.
                Some("service_completed_successfully") => {
                    assert_eq!(
                        services[needed.as_str()].0["restart"],
                        Value::Null,
                        "{needed}"
                    );
                }
                _ => panic!("{name} waits for {needed}: {how}"),
            }
        }
    }
    // `up --wait` is done when all are: those that serve somebody say so.
    for (name, service) in &services {
        let silent = ["fill", "shoppers"].contains(name);
        assert_eq!(tells_its_health(name, *service), !silent, "{name}");
    }
}

#[test]
fn ours_can_write_only_their_state() {
    require!(Containers);
    let stack = Stack::shipped();
    let image = image();
    for name in OURS {
        let service = stack.service(name);
        assert_eq!(service.0["read_only"], true, "{name}");
        assert_eq!(service.0["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service.0["tmpfs"], json!(["/tmp"]), "{name}");
        assert_eq!(
            service.0["user"],
            Value::Null,
            "{name} runs as its image says"
        );
        for mount in service.mounts().iter().filter(|mount| !mount.read_only) {
            let target = mount.target.display().to_string();
            assert!(image["Volumes"].get(&target).is_some(), "{name}: {mount:?}");
        }
    }
}

#[test]
fn the_databases_can_be_decoded_and_prepare() {
    require!(Containers);
    let stack = Stack::shipped();
    for name in ["orders", "inventory"] {
        let command = stack.service(name).command();
        for needed in ["-cwal_level=logical", "-cmax_prepared_transactions=64"] {
            assert!(command.contains(&needed), "{name}: {command:?}");
        }
    }
}

/// The pipeline file of a service, as it lies here.
fn file(service: Service<'_>) -> std::path::PathBuf {
    let command = service.command();
    let ["run", path] = command[..] else {
        panic!("{command:?}");
    };
    service.sees(Path::new(path)).expect("it is mounted")
}

#[test]
fn lockstep_takes_the_pipeline_file_with_what_the_stack_sets_and_not_without() {
    require!(Containers);
    let stack = Stack::shipped();
    let service = stack.service("lockstep");
    let check = |environment: bool| {
        let mut command = Command::new(program());
        command.arg("check").arg(file(service)).arg("--offline");
        if environment {
            command.envs(service.environment());
        }
        command.output().expect("lockstep can be started")
    };
    let ended = check(true);
    assert!(ended.status.success(), "{ended:?}");
    let ended = check(false);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}

/// `host:port` of an address.
fn end(address: &str) -> (&str, u64) {
    let place = address.rsplit_once('@').map_or(address, |(_, place)| place);
    let place = place.split_once("://").map_or(place, |(_, place)| place);
    let place = place.split('/').next().unwrap_or(place);
    let (host, port) = place.rsplit_once(':').expect("a port");
    (host, port.parse().expect("a number"))
}

#[test]
fn every_address_is_one_of_a_service_that_listens_there() {
    require!(Containers);
    let stack = Stack::shipped();
    let document: toml_edit::DocumentMut = text("shop.toml").parse().expect("TOML");
    let of = |section: &str, name: &str, key: &str| {
        let address = document[section][name][key].as_str();
        address.expect("an address").to_owned()
    };
    let mut addresses = vec![
        of("sources", "orders", "url"),
        of("sources", "inventory", "url"),
        of("sinks", "events", "brokers"),
        of("sinks", "cache", "url"),
        of("sinks", "search", "url"),
    ];
    let shop = stack.service("shoppers").environment();
    assert_eq!(shop, stack.service("fill").environment());
    addresses.extend(shop.values().map(|&url| url.to_owned()));
    for address in addresses {
        let (host, port) = end(&address);
        let service = stack.service(host);
        let listeners = service.environment().get("KAFKA_LISTENERS").copied();
        let inside = listeners.is_some_and(|all| all.contains(&format!("://:{port},")));
        assert!(inside || service.ports().contains(&port), "{address}");
    }
    let admin = document["admin"]["listen"].as_str().expect("an address");
    let ours = stack.service("lockstep");
    assert!(ours.ports().contains(&end(admin).1), "{admin}");
    let state = document["state"]["dir"].as_str();
    let kept = ours.mounts().into_iter().find(|mount| !mount.read_only);
    assert_eq!(state.map(Path::new), kept.map(|mount| mount.target));
}
