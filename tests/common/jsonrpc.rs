//! A client of SPDK's JSON-RPC socket: one connection, one call at a time.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub struct JsonRpc {
    stream: UnixStream,
    buffer: Vec<u8>,
    next: u64,
}

#[derive(Deserialize)]
struct Response {
    id: u64,
    #[serde(default)]
    result: Value,
    error: Option<Value>,
}

impl JsonRpc {
    pub async fn connect(socket: &Path) -> Result<Self> {
        Ok(Self {
            stream: UnixStream::connect(socket).await?,
            buffer: Vec::with_capacity(16 * 1024),
            next: 1,
        })
    }

    /// Calls `method`; `Value::Null` means no parameters.
    pub async fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        let id = self.next;
        self.next += 1;
        let mut request = json!({"jsonrpc": "2.0", "id": id, "method": method});
        if !parameters.is_null() {
            request["params"] = parameters;
        }
        self.stream
            .write_all(request.to_string().as_bytes())
            .await?;
        let response = self.response().await.with_context(|| method.to_owned())?;
        if response.id != id {
            bail!("{method}: answer {} to request {id}", response.id);
        }
        match response.error {
            Some(error) => bail!("{method}: {error}"),
            None => Ok(response.result),
        }
    }

    /// Reads one response. JSON-RPC messages have no framing: a message is complete when it parses.
    async fn response(&mut self) -> Result<Response> {
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed");
            }
            match serde_json::from_slice(&self.buffer) {
                Ok(response) => return Ok(response),
                Err(error) if error.is_eof() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
