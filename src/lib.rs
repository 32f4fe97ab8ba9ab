//! The program `opi-spdk` as a library, for its tests and benches.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod api;
pub mod backend;
pub mod cli;
pub mod codec;
pub mod config;
mod configured;
mod connected;
mod ctrlr_dir;
mod discovery;
mod distinguished_name;
pub mod doctor;
pub mod error;
pub mod events;
pub mod frontend;
pub mod gateway;
pub mod health;
pub mod identity;
mod interchange;
pub mod inventory;
pub mod kvm;
mod local_socket;
pub mod machine;
mod mdns;
pub mod middleend;
pub mod notify;
pub mod objects;
pub mod page;
pub mod preflight;
mod private_dir;
mod private_file;
pub mod private_memory;
pub mod program;
pub mod reconcile;
pub mod reload;
pub mod resource;
pub mod server;
pub mod services;
mod setting_files;
pub mod setup;
pub mod shutdown;
pub mod socket_access;
pub mod spdk_rpc;
pub mod state;
pub mod telemetry;
