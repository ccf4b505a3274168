//! OpenSearch's security plugin: TLS, users and roles.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::Product;
use crate::certificates::{self, Certificates};
use crate::component::dir;
use crate::error::{Context, Error};
use crate::https;
use crate::scratch::Scratch;

/// What `tests/kit/install opensearch` puts beside the server.
const PLUGIN: &str = "opensearch-security";
/// User and password that the plugin's own files begin with.
const ADMINISTRATOR: &str = "admin";
/// The server looks for certificates nowhere but in its folder `config`.
const CERTIFICATES: [&str; 3] = ["ca.crt", "server.crt", "server.key"];

/// A server's certificates, and its administrator.
#[derive(Debug)]
pub(super) struct Secure {
    pub(super) certificates: Certificates,
    http: reqwest::Client,
}

impl Secure {
    /// Lays the plugin, its users and the certificates where the server looks for them.
    pub(super) fn prepare(product: Product, scratch: &Scratch) -> Result<Self, Error> {
        let plugin = dir().join(PLUGIN).join("plugin");
        if product != Product::OpenSearch {
            return Err(Error::new("only OpenSearch comes with its security"));
        }
        if !plugin.is_dir() {
            return Err(product.component().missing());
        }
        let certificates = certificates::make(scratch)?;
        let plugins = scratch.make_dir("plugins")?;
        symlink(&plugin, plugins.join(PLUGIN)).context(|| format!("linking {PLUGIN}"))?;
        scratch.make_dir("config")?;
        let files = [
            &certificates.ca,
            &certificates.server,
            &certificates.server_key,
        ];
        for (name, file) in CERTIFICATES.into_iter().zip(files) {
            scratch.write(&format!("config/{name}"), &read(file)?)?;
        }
        scratch.make_dir(&format!("config/{PLUGIN}"))?;
        let from = plugin.join("config");
        for entry in fs::read_dir(&from).context(|| format!("reading {}", from.display()))? {
            let file = entry.context(|| format!("reading {}", from.display()))?;
            let name = format!("config/{PLUGIN}/{}", file.file_name().to_string_lossy());
            scratch.write(&name, &read(&file.path())?)?;
        }
        Ok(Self {
            http: https::client(&read(&certificates.ca)?, None)?,
            certificates,
        })
    }

    /// Of a node that was prepared.
    pub(super) fn settings() -> Vec<String> {
        let [ca, certificate, key] = CERTIFICATES;
        let mut settings = vec![
            "plugins.security.ssl.http.enabled=true".to_owned(),
            "plugins.security.ssl.transport.enforce_hostname_verification=false".to_owned(),
            // Users and roles begin as the plugin's files say.
            "plugins.security.allow_default_init_securityindex=true".to_owned(),
            // May make users and roles by the API.
            "plugins.security.restapi.roles_enabled.0=all_access".to_owned(),
        ];
        for layer in ["http", "transport"] {
            settings.extend([
                format!("plugins.security.ssl.{layer}.pemtrustedcas_filepath={ca}"),
                format!("plugins.security.ssl.{layer}.pemcert_filepath={certificate}"),
                format!("plugins.security.ssl.{layer}.pemkey_filepath={key}"),
            ]);
        }
        settings
    }

    pub(super) async fn request(
        &self,
        url: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> io::Result<(u16, String)> {
        let method = method.parse().map_err(io::Error::other)?;
        let request = self
            .http
            .request(method, format!("{url}{path}"))
            .basic_auth(ADMINISTRATOR, Some(ADMINISTRATOR))
            .header("content-type", "application/json")
            .body(body.to_owned());
        https::answer(request).await
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).context(|| format!("reading {}", path.display()))
}
