//! A headless browser (Debian's Chromium), controlled with the DevTools protocol over two named pipes,
//! which are its file descriptors 3 and 4.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};
use tokio::process::{Child, Command};

/// Timeout of every command.
const BOUND: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: Sender,
    from: BufReader<Receiver>,
    next: u64,
    session: Option<String>,
    /// Exceptions and logged errors, including violations of the Content-Security-Policy.
    pub problems: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts the browser with an empty page of this size.
    pub async fn start(width: u32, height: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("opi-page-").tempdir();
        let dir = dir.expect("a temporary directory");
        let pipe = |name: &str| {
            let path = dir.path().join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
            path
        };
        let (to, from) = (pipe("to"), pipe("from"));
        // Opened for reading and writing, so that neither process blocks until the other opens its end.
        let mut both = OpenOptions::new();
        both.read_write(true);
        let sender = both.open_sender(&to).expect("a pipe");
        let receiver = both.open_receiver(&from).expect("a pipe");
        let child = Self::spawn(dir.path());
        let mut browser = Self {
            child,
            to: sender,
            from: BufReader::new(receiver),
            next: 0,
            session: None,
            problems: Vec::new(),
            _profile: dir,
        };
        let target = json!({ "url": "about:blank" });
        let target = browser.command("Target.createTarget", target).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.command("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime", "Log", "Page"] {
            browser
                .command(&format!("{domain}.enable"), json!({}))
                .await;
        }
        browser.resize(width, height).await;
        browser
    }

    fn spawn(dir: &Path) -> Child {
        Command::new("sh")
            .args(["-c", r#"exec "$@" 3<"$0/to" 4>"$0/from""#])
            .arg(dir)
            .args([
                "chromium",
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
            ])
            .args([
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", dir.join("profile").display()))
            .arg("about:blank")
            .env("HOME", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium is installed: scripts/packages.sh chromium")
    }

    /// Resizes the page, CSS pixels.
    pub async fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", size)
            .await;
    }

    /// Sets the preferred color scheme, `light` or `dark`; an empty string restores the default.
    pub async fn prefers(&mut self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        let media = json!({ "features": [feature] });
        self.command("Emulation.setEmulatedMedia", media).await;
    }

    /// Navigates to a URL.
    pub async fn open(&mut self, url: &str) {
        self.command("Page.navigate", json!({ "url": url })).await;
    }

    /// Evaluates a JavaScript expression; awaits promises.
    pub async fn value(&mut self, expression: &str) -> Value {
        let request =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.command("Runtime.evaluate", request).await;
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].take()
    }

    /// Presses and releases a key, such as `ArrowRight`.
    pub async fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key });
            self.command("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Closes the browser.
    pub async fn close(mut self) {
        self.session = None;
        self.command("Browser.close", json!({})).await;
        let ended = tokio::time::timeout(BOUND, self.child.wait()).await;
        ended
            .expect("the browser exits")
            .expect("a child can be waited for");
    }

    async fn command(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to
            .write_all(&bytes)
            .await
            .expect("the browser reads the pipe");
        let answer = async {
            loop {
                let mut message = self.read().await;
                if message["id"] == id {
                    assert!(message["error"].is_null(), "{method}: {message}");
                    return message["result"].take();
                }
                self.note(&message);
            }
        };
        let answer = tokio::time::timeout(BOUND, answer).await;
        answer.unwrap_or_else(|_| panic!("{method} was not answered within {BOUND:?}"))
    }

    async fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from
            .read_until(0, &mut bytes)
            .await
            .expect("a message");
        bytes.pop();
        serde_json::from_slice(&bytes).expect("JSON")
    }

    fn note(&mut self, event: &Value) {
        let is_error = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["level"] == "error",
            _ => false,
        };
        if is_error {
            self.problems.push(event["params"].to_string());
        }
    }
}
