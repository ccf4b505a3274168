//! Whether what is rendered are objects that Kubernetes knows, and files that lockstep reads.

use std::collections::BTreeSet;
use std::process::Command;

use lockstep_chart::helm::Helm;
use lockstep_chart::{program, yaml};
use lockstep_kit::Component::Helm as NeedsHelm;
use lockstep_kit::{component, require};
use serde_json::{Value, json};

use crate::cases;

/// The versions whose schemas `tests/kit/install helm` brings: the oldest that the chart is for, and newer ones.
const VERSIONS: [&str; 3] = ["1.29", "1.35", "1.37"];

/// Kinds, with the names that the schemas give them.
const KINDS: [(&str, &str, &str); 13] = [
    ("v1", "ConfigMap", "io.k8s.api.core.v1.ConfigMap"),
    ("v1", "Secret", "io.k8s.api.core.v1.Secret"),
    ("v1", "Service", "io.k8s.api.core.v1.Service"),
    ("v1", "ServiceAccount", "io.k8s.api.core.v1.ServiceAccount"),
    (
        "v1",
        "PersistentVolumeClaim",
        "io.k8s.api.core.v1.PersistentVolumeClaim",
    ),
    ("v1", "Pod", "io.k8s.api.core.v1.Pod"),
    ("apps/v1", "Deployment", "io.k8s.api.apps.v1.Deployment"),
    ("batch/v1", "Job", "io.k8s.api.batch.v1.Job"),
    ("batch/v1", "CronJob", "io.k8s.api.batch.v1.CronJob"),
    (
        "policy/v1",
        "PodDisruptionBudget",
        "io.k8s.api.policy.v1.PodDisruptionBudget",
    ),
    (
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "io.k8s.api.networking.v1.NetworkPolicy",
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "Role",
        "io.k8s.api.rbac.v1.Role",
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        "io.k8s.api.rbac.v1.RoleBinding",
    ),
];

/// Of the Prometheus operator.
const MONITORING: &str = "monitoring.coreos.com/v1";

/// A chart whose values are `objects`, and whose schema is that of these objects in a version of Kubernetes: Helm itself judges them.
fn judge(helm: &Helm, version: &str, objects: &[Value]) -> Result<(), String> {
    let path = component::dir().join(format!("helm/schemas/{version}.json"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut schema: Value = serde_json::from_str(&text).expect("JSON");
    let cases = KINDS.map(|(api, kind, name)| {
        let is =
            json!({ "properties": { "apiVersion": { "const": api }, "kind": { "const": kind } } });
        json!({ "if": is, "then": { "$ref": format!("#/$defs/{name}") } })
    });
    schema["$id"] = "https://lockstep.test/objects.json".into();
    schema["properties"] = json!({ "objects": { "type": "array", "items": { "required": ["apiVersion", "kind"], "allOf": cases } } });
    let chart = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: &str| std::fs::write(chart.path().join(name), text).expect("written");
    write(
        "Chart.yaml",
        "apiVersion: v2\nname: judge\nversion: 0.0.0\n",
    );
    write("values.schema.json", &schema.to_string());
    let values = helm.values(&json!({ "objects": objects }));
    let judged = helm.template_of(chart.path(), "judge", &[&values], &[]);
    if judged.well {
        Ok(())
    } else {
        Err(judged.to_string())
    }
}

#[test]
fn kubernetes_knows_them_in_three_versions() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    let mut objects = Vec::new();
    let mut kinds = BTreeSet::new();
    for case in cases::all() {
        for object in yaml::documents(&case.rendered(&helm, &[])) {
            let (api, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
            let known = KINDS
                .iter()
                .find(|known| (Some(known.0), Some(known.1)) == (api, kind));
            match known {
                Some(known) => {
                    kinds.insert(known.1);
                    objects.push(object);
                }
                None => assert_eq!(api, Some(MONITORING), "{object}"),
            }
        }
    }
    assert_eq!(kinds.len(), KINDS.len(), "the cases make only {kinds:?}");
    for version in VERSIONS {
        judge(&helm, version, &objects).unwrap_or_else(|error| panic!("{version}: {error}"));
    }
    // The judge would see it.
    for (pointer, wrong) in [
        ("/spec/replicas", json!("two")),
        ("/spec/template/spec/containers/0/image", json!(7)),
        (
            "/spec/template/spec",
            json!({ "containers": [], "restartpolicy": "Never" }),
        ),
    ] {
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment");
        let mut deployment = deployment.expect("a deployment").clone();
        *deployment.pointer_mut(pointer).expect("a place") = wrong;
        for version in VERSIONS {
            let judged = judge(&helm, version, std::slice::from_ref(&deployment));
            assert!(judged.is_err(), "{version}: {pointer} is taken");
        }
    }
}

/// The names in `${NAME}`.
fn placeholders(text: &str) -> BTreeSet<&str> {
    let parts = text.split("${").skip(1);
    parts
        .filter_map(|part| Some(part.split_once('}')?.0))
        .collect()
}

#[test]
fn lockstep_reads_every_pipeline_file() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    let mut read = 0;
    for case in cases::all() {
        for object in yaml::documents(&case.rendered(&helm, &[])) {
            let data = ["data", "stringData"].map(|key| object[key]["pipeline.yaml"].as_str());
            let Some(text) = data.into_iter().flatten().next() else {
                continue;
            };
            let file = helm.file("pipeline.yaml", text);
            let mut check = Command::new(program());
            check.arg("check").arg(&file).arg("--offline");
            check
                .env_clear()
                .envs(placeholders(text).into_iter().map(|name| (name, "2")));
            let checked = check.output().expect("lockstep can be started");
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{}: {said}\n{text}", case.name);
            // The container gives it what it asks for.
            assert!(
                placeholders(text).contains("LOCKSTEP_ADMIN_TOKEN"),
                "{text}"
            );
            read += 1;
        }
    }
    assert!(read >= 7, "{read}");
}

/// What no version of Kubernetes would say: pods that may do no more than they must.
#[test]
fn pods_may_do_no_more_than_they_must() {
    require!(NeedsHelm);
    let helm = Helm::alone();
    let mut pods = 0;
    for case in cases::all() {
        for object in yaml::documents(&case.rendered(&helm, &[])) {
            let places = [
                "/spec/template/spec",
                "/spec/jobTemplate/spec/template/spec",
                "/spec",
            ];
            let spec = places.iter().filter_map(|place| object.pointer(place));
            let Some(spec) = spec.into_iter().find(|spec| spec["containers"].is_array()) else {
                continue;
            };
            pods += 1;
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{object}");
            assert_eq!(
                spec["securityContext"]["seccompProfile"]["type"],
                "RuntimeDefault"
            );
            assert_eq!(spec["enableServiceLinks"], false, "{object}");
            assert!(
                spec["automountServiceAccountToken"].is_boolean(),
                "{object}"
            );
            for container in spec["containers"].as_array().into_iter().flatten() {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{object}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{object}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{object}");
            }
        }
    }
    assert!(pods > 12, "{pods}");
}
