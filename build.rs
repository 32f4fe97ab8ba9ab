//! Compiles `proto/` to Rust and to a FileDescriptorSet.
//!
//! The descriptor set keeps the google.api options and the comments, since names, required fields, HTTP routes and the
//! OpenAPI description are derived from it at run time.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Messages with a key: their `Debug` is implemented in `src/api.rs`, redacted.
const SECRET: [&str; 6] = [
    "opi_api.storage.v1.EncryptedVolume",
    "opi_api.storage.v1.NvmeSubsystemSpec",
    "opi_api.storage.v1.TcpController",
    "opi_spdk.v1.NvmeCredential",
    "opi_spdk.v1.NvmeHost",
    "opi_spdk.v1.RekeyNvmeHostResponse",
];

/// Package of this project's own kinds, which are not in the published API.
const OWN: &str = "opi_spdk.v1";

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
    let builder = builder
        .codec_path("crate::codec::ApiCodec")
        .skip_debug(SECRET);
    let mut published = compiler.file_descriptor_set();
    published.file.retain(|file| file.package() != "google.api");
    let mut own = published.clone();
    published.file.retain(|file| file.package() != OWN);
    // Messages shared by several services are part of the published API. This run would write an empty file for its
    // package; the second run replaces it.
    own.file
        .retain(|file| file.package() == OWN || file.service.is_empty());
    builder
        .clone()
        .extern_path(".opi_api.storage.v1", "crate::api::storage")
        .compile_fds(own)?;
    builder.compile_fds(published)?;
    Ok(())
}

/// Lists the `.proto` files of a folder.
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
