//! The floor: a gRPC server like opi-spdk's whose handlers do nothing. It measures tonic, HTTP/2, protobuf and the
//! loopback, a lower bound for any server on them.
//!
//! It is a separate process on the cores of opi-spdk's control threads, with as many worker threads, and its messages
//! have the same size.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use opi_spdk::api::storage::{
    CreateNullVolumeRequest, DeleteNullVolumeRequest, GetNullVolumeRequest, ListNullVolumesRequest,
    ListNullVolumesResponse, NullVolume, StatsNullVolumeRequest, StatsNullVolumeResponse,
    UpdateNullVolumeRequest, VolumeStats,
    null_volume_service_server::{NullVolumeService, NullVolumeServiceServer},
};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::process::Process;
use crate::settings::Settings;
use crate::target::free_port;

/// Runs the server on `port` until the process is killed, on the cores of the process's affinity.
pub fn serve(port: u16) -> Result<()> {
    let workers = spdk::cores::CoreSet::allowed()?.iter().count().clamp(1, 8);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = NullVolumeServiceServer::new(Floor::new());
        Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(60)))
            .max_concurrent_streams(1024)
            .add_routes(Routes::new(service))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}

/// Starts the server as a process.
pub async fn start(settings: &Settings) -> Result<(Process, u16)> {
    let port = free_port()?;
    let arguments = ["--floor".to_owned(), port.to_string()];
    let mut process = Process::start(
        "floor",
        &settings.log_dir(),
        &settings.cores.control,
        &std::env::current_exe()?,
        &arguments,
    )?;
    let timeout = Duration::from_secs(10);
    process
        .poll_until("gRPC", timeout, async || crate::opi::answers(port).await)
        .await?;
    Ok((process, port))
}

/// Its constant answers.
struct Floor {
    volume: NullVolume,
    stats: StatsNullVolumeResponse,
}

impl Floor {
    fn new() -> Self {
        Self {
            volume: NullVolume {
                name: "volumes/b0-1000".to_owned(),
                block_size: 512,
                blocks_count: 131_072,
                uuid: "6f1ed3a5-1c0d-4a4e-9f8b-3b7d2f1a9c55".to_owned(),
            },
            stats: StatsNullVolumeResponse {
                stats: Some(VolumeStats::default()),
            },
        }
    }
}

#[tonic::async_trait]
impl NullVolumeService for Floor {
    async fn create_null_volume(
        &self,
        _: Request<CreateNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        Ok(Response::new(self.volume.clone()))
    }

    async fn delete_null_volume(
        &self,
        _: Request<DeleteNullVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn update_null_volume(
        &self,
        _: Request<UpdateNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        Ok(Response::new(self.volume.clone()))
    }

    async fn list_null_volumes(
        &self,
        _: Request<ListNullVolumesRequest>,
    ) -> Result<Response<ListNullVolumesResponse>, Status> {
        Ok(Response::new(ListNullVolumesResponse::default()))
    }

    async fn get_null_volume(
        &self,
        _: Request<GetNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        Ok(Response::new(self.volume.clone()))
    }

    async fn stats_null_volume(
        &self,
        _: Request<StatsNullVolumeRequest>,
    ) -> Result<Response<StatsNullVolumeResponse>, Status> {
        Ok(Response::new(self.stats))
    }
}
