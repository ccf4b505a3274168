//! The API server of Kubernetes, with etcd behind it. There is nothing that runs pods, and no controllers: objects are what
//! clients make of them, and a namespace that is deleted stays, ending.

mod access;
mod ground;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::component::{Component, dir};
use crate::error::{Context, Error};
use crate::port::Port;
use crate::process::{End, Launch, Process};
use crate::scratch::Scratch;
use access::Access;

const START_DEADLINE: Duration = Duration::from_secs(180);

/// Longer than the server takes to let watches end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How long a token of [`Kubernetes::account`] is valid: longer than any test runs.
const TOKEN_SECONDS: u64 = 86_400;

/// A test's own server.
#[derive(Clone, Debug, Default)]
pub struct KubernetesOptions {
    /// More arguments of kube-apiserver, such as `--watch-cache=false`; the last one of a name counts.
    pub arguments: Vec<String>,
}

/// A running server.
#[derive(Debug)]
pub struct Kubernetes {
    access: Access,
    kubeconfig: PathBuf,
    ca: PathBuf,
    own: Option<Own>,
    /// What a server that is provided has no files for.
    _files: Option<Scratch>,
}

/// Dropped in this order: the one that asks before the one that is asked.
#[derive(Debug)]
struct Own {
    server: Process,
    etcd: Process,
    scratch: Scratch,
    etcd_scratch: Scratch,
    port: Port,
    _etcd_ports: [Port; 2],
}

impl Kubernetes {
    /// The server that all tests of the process share, started at the first call. Isolate by namespace or by name.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Kubernetes> = OnceCell::const_new();
        SHARED
            .get_or_init(async || match Component::Kubernetes.provided() {
                Some(kubeconfig) => {
                    Self::provided(kubeconfig.into()).unwrap_or_else(|error| panic!("{error}"))
                }
                None => Self::start(KubernetesOptions::default()).await,
            })
            .await
    }

    fn provided(kubeconfig: PathBuf) -> Result<Self, Error> {
        let doing = || format!("reading {}", kubeconfig.display());
        let text = std::fs::read_to_string(&kubeconfig).context(doing)?;
        let access = Access::read(&text).context(doing)?;
        let files = Scratch::new("kubernetes")?;
        let ca = files.write("ca.crt", access.ca())?;
        Ok(Self {
            access,
            kubeconfig,
            ca,
            own: None,
            _files: Some(files),
        })
    }

    /// Starts a server of the test's own.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub async fn start(options: KubernetesOptions) -> Self {
        Self::try_start(options)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Kubernetes::start`].
    ///
    /// # Errors
    /// When it is not installed or does not start, with the end of its log.
    pub async fn try_start(options: KubernetesOptions) -> Result<Self, Error> {
        let mut tries = 3;
        loop {
            match Self::start_once(&options).await {
                Err(error) if error.is_port_taken() && tries > 1 => tries -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn start_once(options: &KubernetesOptions) -> Result<Self, Error> {
        if !Component::Kubernetes.is_installed() {
            return Err(Component::Kubernetes.missing());
        }
        let etcd_ports = [Port::reserve()?, Port::reserve()?];
        let etcd_scratch = Scratch::new("etcd")?;
        let etcd = etcd(&etcd_scratch, &etcd_ports)?;
        let etcd = Process::start(etcd)?;

        let (port, scratch) = (Port::reserve()?, Scratch::new("kubernetes")?);
        let url = format!("https://127.0.0.1:{}", port.number());
        let files = ground::make(&scratch, &url)?;
        let arguments = server_arguments(&scratch, &files, &port, &etcd_ports, options);
        let server = Process::start(Launch {
            name: "kube-apiserver".into(),
            program: program("kube-apiserver"),
            args: arguments,
            dir: scratch.path().into(),
            end: End::Kill,
        })?;
        let started = Self {
            access: files.access,
            kubeconfig: files.kubeconfig,
            ca: files.ca,
            own: Some(Own {
                server,
                etcd,
                scratch,
                etcd_scratch,
                port,
                _etcd_ports: etcd_ports,
            }),
            _files: None,
        };
        started.ready().await.map(|()| started)
    }

    /// Ready once what the server makes for itself, the roles among it, is there.
    async fn ready(&self) -> Result<(), Error> {
        let own = self.own();
        let look = async || {
            if let Some(status) = own.etcd.exited() {
                return Err(io::Error::other(format!(
                    "etcd has ended ({status}): {}",
                    own.etcd_scratch.read("log")
                )));
            }
            match self.access.request("GET", "/readyz", None).await? {
                (200, _) => Ok(()),
                (status, body) => Err(io::Error::other(format!("{status}: {body}"))),
            }
        };
        own.server.ready(START_DEADLINE, look).await
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .unwrap_or_else(|| panic!("{} is a server that the kit did not start", self.url()))
    }

    /// `https://127.0.0.1:6443`
    pub fn url(&self) -> &str {
        self.access.url()
    }

    /// `127.0.0.1:6443`
    pub fn address(&self) -> String {
        let url = self.url();
        let address = url.split_once("://").map_or(url, |(_, address)| address);
        address.trim_end_matches('/').to_owned()
    }

    /// The administrator's kubeconfig, in JSON, which is YAML as well: for helm and kubectl. Its user may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The authority that signed the server's certificate, in PEM.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// Sends one request as the administrator; status and body of the answer.
    ///
    /// # Errors
    /// When the server cannot be reached, or its answer is no JSON.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, Value)> {
        let (status, body) = self.access.request(method, path, body).await?;
        Ok((status, serde_json::from_str(&body)?))
    }

    /// As [`Kubernetes::request`], by the holder of a token.
    ///
    /// # Errors
    /// As for [`Kubernetes::request`].
    pub async fn request_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<(u16, Value)> {
        let (status, body) = self.access.request_as(token, method, path, body).await?;
        Ok((status, serde_json::from_str(&body)?))
    }

    /// Makes a namespace, unless it is there.
    ///
    /// # Panics
    /// When the server does not.
    pub async fn namespace(&self, name: &str) {
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        self.make("/api/v1/namespaces", &namespace).await;
    }

    /// Makes a service account that may do what the rules of a Role say, and nothing else beyond what all may; its token.
    /// Where it is there already it keeps the rights it has.
    ///
    /// # Panics
    /// When the server does not.
    pub async fn account(&self, namespace: &str, name: &str, rules: &Value) -> String {
        let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
        let core = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let metadata = json!({ "name": name });
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
        self.make(&core, &account).await;
        let version = "rbac.authorization.k8s.io/v1";
        let role =
            json!({ "apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules });
        self.make(&format!("{rbac}/roles"), &role).await;
        let binding = json!({
            "apiVersion": version, "kind": "RoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": namespace }],
        });
        self.make(&format!("{rbac}/rolebindings"), &binding).await;
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "expirationSeconds": TOKEN_SECONDS },
        });
        let given = self.make(&format!("{core}/{name}/token"), &asked).await;
        let token = given["status"]["token"].as_str();
        token.unwrap_or_else(|| panic!("no token: {given}")).into()
    }

    async fn make(&self, path: &str, object: &Value) -> Value {
        match self.request("POST", path, Some(object)).await {
            Ok((200..=201 | 409, made)) => made,
            other => panic!("{path}: {other:?}"),
        }
    }

    /// The server's version: `1.35.4`.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn version(&self) -> Result<String, Error> {
        let asked = self.request("GET", "/version", None).await;
        let (_, about) = asked.context(|| format!("asking {}", self.url()))?;
        let version = about["gitVersion"].as_str().unwrap_or("unknown");
        Ok(version.trim_start_matches('v').to_owned())
    }

    /// Of clients, on 127.0.0.1.
    ///
    /// # Panics
    /// For a server that a variable provides.
    pub fn port(&self) -> u16 {
        self.own().port.number()
    }

    /// What the API server has logged since its last start.
    pub fn log(&self) -> String {
        self.own().scratch.read("log")
    }

    /// SIGKILL, to the API server; etcd goes on, as in a cluster.
    pub fn kill(&self) {
        self.own().server.kill();
    }

    /// `true` stops the API server where it is (SIGSTOP), `false` lets it go on.
    pub fn freeze(&self, freeze: bool) {
        self.own().server.freeze(freeze);
    }

    /// As [`Kubernetes::freeze`], etcd: the API server lives, and cannot store anything.
    pub fn freeze_etcd(&self, freeze: bool) {
        self.own().etcd.freeze(freeze);
    }

    /// SIGTERM, and SIGKILL after 30 s, to the API server.
    pub async fn stop(&self) {
        self.own().server.stop(Signal::TERM, STOP_DEADLINE).await;
    }

    /// Starts the API server again after its end; it is not ready yet, and serves before it is.
    pub fn begin_again(&self) {
        self.own()
            .server
            .start_again()
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Stops it unless it is down, starts it on the same port with the same data, and waits until it is ready.
    pub async fn restart(&self) {
        self.stop().await;
        self.begin_again();
        self.ready().await.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn program(name: &str) -> PathBuf {
    dir().join("kubernetes/bin").join(name)
}

fn etcd(scratch: &Scratch, ports: &[Port; 2]) -> Result<Launch, Error> {
    let data = scratch.make_dir("data")?;
    let [clients, peers] = ports
        .each_ref()
        .map(|port| format!("http://127.0.0.1:{}", port.number()));
    let arguments = [
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--log-level=warn".into(),
        // A killed process survives it, a lost machine would not.
        "--unsafe-no-fsync".into(),
    ];
    Ok(Launch {
        name: "etcd".into(),
        program: program("etcd"),
        args: arguments.map(Into::into).into(),
        dir: scratch.path().into(),
        end: End::Kill,
    })
}

fn server_arguments(
    scratch: &Scratch,
    files: &ground::Files,
    port: &Port,
    etcd: &[Port; 2],
    options: &KubernetesOptions,
) -> Vec<OsString> {
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", etcd[0].number()),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        // It would announce an address that must not be a loopback's.
        "--endpoint-reconciler-type=none".into(),
        format!("--secure-port={}", port.number()),
        format!("--cert-dir={}", scratch.path().display()),
        format!("--client-ca-file={}", files.ca.display()),
        format!("--tls-cert-file={}", files.certificate.display()),
        format!("--tls-private-key-file={}", files.key.display()),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", files.proving.display()),
        format!(
            "--service-account-signing-key-file={}",
            files.signing.display()
        ),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--allow-privileged=true".into(),
        "--profiling=false".into(),
    ];
    arguments.extend(options.arguments.iter().cloned());
    arguments.into_iter().map(Into::into).collect()
}

/// The version of the installed server.
pub fn installed_version() -> Option<String> {
    let release = std::fs::read_to_string(dir().join("kubernetes/release")).ok()?;
    Some(release.trim().to_owned())
}
