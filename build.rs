//! Compiles `proto/` to Rust and to one FileDescriptorSet, nothing else.
//!
//! The descriptor set keeps the google.api options and the comments: names, required fields, HTTP
//! routes and the OpenAPI description are read off it at run time.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Messages that hold a key: their `Debug` is written by hand, in `src/api.rs`.
const SECRET: [&str; 3] = [
    "opi_api.storage.v1.EncryptedVolume",
    "opi_api.storage.v1.NvmeSubsystemSpec",
    "opi_api.storage.v1.TcpController",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let root = Path::new("proto");
    let mut files = Vec::new();
    for folder in ["storage", "inventory", "opi_spdk/v1"] {
        files.extend(protos(&root.join(folder))?);
    }
    files.sort();

    let mut compiler = protox::Compiler::new([root])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(files)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("opi_api.bin"),
        compiler.encode_file_descriptor_set(),
    )?;

    let mut builder = tonic_prost_build::configure();
    for message in compiler.descriptor_pool().all_messages() {
        let name = message.full_name();
        if name.starts_with("opi_") {
            builder = builder
                .message_attribute(name, "#[derive(::prost_reflect::ReflectMessage)]")
                .message_attribute(name, format!("#[prost_reflect(message_name = \"{name}\")]"))
                .message_attribute(
                    name,
                    "#[prost_reflect(descriptor_pool = \"crate::api::pool()\")]",
                );
        }
    }
    let mut set = compiler.file_descriptor_set();
    set.file.retain(|file| file.package() != "google.api");
    builder
        .codec_path("crate::codec::ApiCodec")
        .skip_debug(SECRET)
        .compile_fds(set)?;
    Ok(())
}

/// The `.proto` files of one folder.
fn protos(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(files)
}
