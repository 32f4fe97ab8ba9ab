//! A target with SPDK's JSON-RPC, and requests to it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Answer, Http, Options, Target, Tool, free_port};

pub const PASSWORD: &str = "correct horse";

/// A directory with the target's socket and a password file.
pub struct Place {
    pub dir: Arc<TempDir>,
    pub http: Http,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("opi-")
            .tempdir()
            .expect("a directory");
        std::fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).expect("a file");
        let place = Self {
            dir: Arc::new(dir),
            http: Http(([127, 0, 0, 1], free_port()).into()),
        };
        place.set_mode(0o600);
        place
    }

    pub fn set_mode(&self, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.password(), permissions).expect("the permissions can be set");
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("rpc.sock")
    }

    pub fn lock(&self) -> PathBuf {
        self.dir.path().join("rpc.sock.lock")
    }

    pub fn password(&self) -> PathBuf {
        self.dir.path().join("password")
    }

    pub fn options(&self) -> Options {
        let options = Options::default().in_dir(Arc::clone(&self.dir));
        options.args([
            "--spdk-rpc-socket".to_owned(),
            self.socket().display().to_string(),
        ])
    }

    pub fn with_proxy(&self) -> Options {
        let user = format!("admin:{}", self.password().display());
        let address = self.http.0.to_string();
        self.options()
            .args(["--spdk-rpc-http", &address, "--spdk-rpc-user", &user])
    }

    /// Runs a command with SPDK's command line client.
    pub async fn rpc(&self, args: &[&str]) -> Result<Value, String> {
        let text = Tool::rpc(&self.socket())
            .args(args.iter().copied())
            .run()
            .await?;
        Ok(serde_json::from_str(&text).unwrap_or_else(|_| text.trim().into()))
    }

    pub async fn bdevs(&self) -> Vec<String> {
        let all = self.rpc(&["bdev_get_bdevs"]).await.expect("a list");
        let all = all.as_array().expect("a list");
        all.iter()
            .map(|bdev| bdev["name"].as_str().expect("a name").to_owned())
            .collect()
    }

    pub async fn post(&self, pair: &str, body: impl Into<Vec<u8>>) -> Answer {
        let basic = format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        );
        self.http
            .send("POST", "/", &[("authorization", &basic)], body.into())
            .await
    }

    /// Starts a target that must fail to start; returns the last line of its log.
    pub fn refused(&self, options: &Options) -> String {
        let mut target = Target::spawn(options);
        let status = target.wait(Duration::from_secs(10));
        assert!(!status.success(), "the target started:\n{}", target.log());
        target.log().lines().last().unwrap_or_default().to_owned()
    }
}

pub fn admin() -> String {
    format!("admin:{PASSWORD}")
}

/// A request nested deeper than SPDK accepts: SPDK closes the connection.
pub fn too_deep() -> String {
    let [open, close] = ["[", "]"].map(|bracket| bracket.repeat(70));
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"spdk_get_version","params":{open}{close}}}"#)
}

pub fn encrypted(base: &str) -> Value {
    json!({
        "volume_name_ref": base, "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
        "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=",
    })
}

pub fn call(method: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": 7, "method": method }).to_string()
}
