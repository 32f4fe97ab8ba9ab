//! The four measured calls, over each of the interfaces.
//!
//! Another interface needs a variant of [`Subject`], of [`Address`] and of [`Client`].

use std::path::PathBuf;

use anyhow::Result;
use hyper::Method;
use opi_spdk::api::storage::{
    CreateNullVolumeRequest, DeleteNullVolumeRequest, GetNullVolumeRequest, NullVolume,
    StatsNullVolumeRequest, null_volume_service_client::NullVolumeServiceClient,
};
use serde::Serialize;
use serde_json::json;
use tonic::transport::Channel;

use crate::http::Http;
use crate::jsonrpc::JsonRpc;
use crate::scenario::BLOCK_SIZE;

/// Size of each volume: 64 MiB of blocks.
const BLOCKS: u64 = 131_072;

/// A call on a null volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verb {
    Create,
    Get,
    Stats,
    Delete,
}

impl Verb {
    /// In the order of a volume's lifetime.
    pub const ALL: [Self; 4] = [Self::Create, Self::Get, Self::Stats, Self::Delete];
}

/// The server that answers the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Subject {
    #[serde(rename = "opi-spdk")]
    Opi,
    #[serde(rename = "opi-spdk over HTTP")]
    OpiHttp,
    #[serde(rename = "floor")]
    Floor,
    #[serde(rename = "spdk_tgt")]
    SpdkTgt,
}

/// Address of a server.
#[derive(Debug, Clone)]
pub enum Address {
    Grpc(u16),
    Http(u16),
    JsonRpc(PathBuf),
}

/// A connection with one call in flight at a time.
pub enum Client {
    Grpc(NullVolumeServiceClient<Channel>),
    Http(Http),
    JsonRpc(JsonRpc),
}

impl Client {
    pub async fn connect(address: &Address) -> Result<Self> {
        Ok(match address {
            Address::Grpc(port) => Self::Grpc(NullVolumeServiceClient::new(
                crate::opi::connect(*port).await?,
            )),
            Address::Http(port) => Self::Http(Http::connect(*port).await?),
            Address::JsonRpc(socket) => Self::JsonRpc(JsonRpc::connect(socket).await?),
        })
    }

    /// Makes a call on the volume `id`.
    pub async fn call(&mut self, verb: Verb, id: &str) -> Result<()> {
        match self {
            Self::Grpc(client) => grpc(client, verb, id).await,
            Self::Http(client) => http(client, verb, id).await,
            Self::JsonRpc(client) => {
                let (method, parameters) = match verb {
                    Verb::Create => (
                        "bdev_null_create",
                        json!({"name": id, "num_blocks": BLOCKS, "block_size": BLOCK_SIZE}),
                    ),
                    Verb::Get => ("bdev_get_bdevs", json!({"name": id})),
                    Verb::Stats => ("bdev_get_iostat", json!({"name": id})),
                    Verb::Delete => ("bdev_null_delete", json!({"name": id})),
                };
                client.call(method, parameters).await.map(drop)
            }
        }
    }
}

async fn grpc(client: &mut NullVolumeServiceClient<Channel>, verb: Verb, id: &str) -> Result<()> {
    let name = || format!("volumes/{id}");
    match verb {
        Verb::Create => {
            let volume = NullVolume {
                block_size: BLOCK_SIZE.cast_signed(),
                blocks_count: BLOCKS.cast_signed(),
                ..Default::default()
            };
            let request = CreateNullVolumeRequest {
                null_volume: Some(volume),
                null_volume_id: id.to_owned(),
            };
            client.create_null_volume(request).await?;
        }
        Verb::Get => {
            let request = GetNullVolumeRequest { name: name() };
            client.get_null_volume(request).await?;
        }
        Verb::Stats => {
            let request = StatsNullVolumeRequest { name: name() };
            client.stats_null_volume(request).await?;
        }
        Verb::Delete => {
            let request = DeleteNullVolumeRequest {
                name: name(),
                allow_missing: false,
            };
            client.delete_null_volume(request).await?;
        }
    }
    Ok(())
}

async fn http(client: &mut Http, verb: Verb, id: &str) -> Result<()> {
    let (method, path, body) = match verb {
        Verb::Create => (
            Method::POST,
            format!("/v1/nullVolumes?null_volume_id={id}"),
            Some(json!({"block_size": BLOCK_SIZE, "blocks_count": BLOCKS})),
        ),
        Verb::Get => (Method::GET, format!("/v1/nullVolumes/{id}"), None),
        Verb::Stats => (Method::GET, format!("/v1/nullVolumes/{id}:stats"), None),
        Verb::Delete => (Method::DELETE, format!("/v1/nullVolumes/{id}"), None),
    };
    client.call(method, &path, body).await.map(drop)
}
