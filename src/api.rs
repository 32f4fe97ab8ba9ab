//! The OPI storage and inventory API: Rust types, service traits and clients compiled from `proto/`, and their
//! descriptors.
//!
//! Everything is generated, except the `Debug` of messages with a key.

use std::fmt;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MethodDescriptor};

/// Package `opi_api.storage.v1`: volumes and their export.
#[allow(missing_docs, clippy::all)]
pub mod storage {
    tonic::include_proto!("opi_api.storage.v1");
}

/// Package `opi_api.inventory.v1`: the machine that the server runs on.
#[allow(missing_docs, clippy::all)]
pub mod inventory {
    tonic::include_proto!("opi_api.inventory.v1");
}

/// Package `opi_spdk.v1`: this project's own kinds and services.
#[allow(missing_docs, clippy::all)]
pub mod own {
    tonic::include_proto!("opi_spdk.v1");
}

/// The encoded descriptor set of the API and its imports, with options and comments, as served by reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("opi_api");

/// The decoded descriptors of the API. Decoded once; callable from any thread.
pub fn pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build made a valid descriptor set")
    });
    &POOL
}

/// Whether a method only reads, by its verb (AIP-130). All others may change something.
pub fn is_read(method: &MethodDescriptor) -> bool {
    let mut reads = ["Get", "List", "Stats", "Watch"].iter();
    reads.any(|read| method.name().starts_with(read))
}

/// Placeholder for a key in `Debug` output: shows only whether there is one.
struct Redacted<'a>(&'a [u8]);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() {
            "none"
        } else {
            "redacted"
        })
    }
}

impl fmt::Debug for storage::EncryptedVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedVolume")
            .field("name", &self.name)
            .field("volume_name_ref", &self.volume_name_ref)
            .field("key", &Redacted(&self.key))
            .field("cipher", &self.cipher())
            .finish()
    }
}

impl fmt::Debug for storage::NvmeSubsystemSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeSubsystemSpec")
            .field("nqn", &self.nqn)
            .field("serial_number", &self.serial_number)
            .field("model_number", &self.model_number)
            .field("max_namespaces", &self.max_namespaces)
            .field("hostnqn", &self.hostnqn)
            .field("psk", &Redacted(&self.psk))
            .finish()
    }
}

impl fmt::Debug for storage::TcpController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpController")
            .field("hdgst", &self.hdgst)
            .field("ddgst", &self.ddgst)
            .field("psk", &Redacted(&self.psk))
            .finish()
    }
}

impl fmt::Debug for own::NvmeHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeHost")
            .field("name", &self.name)
            .field("hostnqn", &self.hostnqn)
            .field("psk", &Redacted(&self.psk))
            .field("dhchap_key", &Redacted(&self.dhchap_key))
            .field("dhchap_ctrlr_key", &Redacted(&self.dhchap_ctrlr_key))
            .field("old_keys_until", &self.old_keys_until)
            .finish()
    }
}

impl fmt::Debug for own::NvmeCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeCredential")
            .field("name", &self.name)
            .field("hostnqn", &self.hostnqn)
            .field("dhchap_key", &Redacted(&self.dhchap_key))
            .field("dhchap_ctrlr_key", &Redacted(&self.dhchap_ctrlr_key))
            .finish()
    }
}

impl fmt::Debug for own::RekeyNvmeHostResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RekeyNvmeHostResponse")
            .field("psk", &Redacted(&self.psk))
            .field("dhchap_key", &Redacted(&self.dhchap_key))
            .field("dhchap_ctrlr_key", &Redacted(&self.dhchap_ctrlr_key))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_reflect::{Kind, ReflectMessage};

    #[test]
    fn messages_know_their_descriptors() {
        let volume = storage::NullVolume::default();
        assert_eq!(
            volume.descriptor().full_name(),
            "opi_api.storage.v1.NullVolume"
        );
        let endpoint = storage::PciEndpoint {
            port_id: Some(0),
            ..Default::default()
        };
        let dynamic = endpoint.transcode_to_dynamic();
        assert!(dynamic.has_field_by_name("port_id"));
        assert!(!dynamic.has_field_by_name("virtual_function"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = b"NVMeTLSkey-1:01:secret".to_vec();
        let subsystem = storage::NvmeSubsystem {
            spec: Some(storage::NvmeSubsystemSpec {
                psk: secret.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let remote = storage::NvmeRemoteController {
            tcp: Some(storage::TcpController {
                psk: secret.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let volume = storage::CreateEncryptedVolumeRequest {
            encrypted_volume: Some(storage::EncryptedVolume {
                key: secret.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let host = own::NvmeHost {
            psk: secret.clone(),
            dhchap_key: secret.clone(),
            dhchap_ctrlr_key: secret.clone(),
            ..Default::default()
        };
        let credential = own::NvmeCredential {
            dhchap_key: secret.clone(),
            dhchap_ctrlr_key: secret.clone(),
            ..Default::default()
        };
        let made = own::RekeyNvmeHostResponse {
            psk: secret.clone(),
            dhchap_key: secret.clone(),
            dhchap_ctrlr_key: secret.clone(),
        };
        let bytes = format!("{secret:?}");
        let inner = bytes.trim_matches(['[', ']']);
        for text in [
            format!("{subsystem:?}"),
            format!("{remote:?}"),
            format!("{volume:?}"),
            format!("{host:?}"),
            format!("{credential:?}"),
            format!("{made:?}"),
        ] {
            assert!(text.contains("redacted"), "{text}");
            assert!(
                !text.contains(inner) && !text.contains("NVMeTLSkey"),
                "{text}"
            );
        }
    }

    /// A new bytes field that is a key has to be hidden too.
    #[test]
    fn every_bytes_field_is_known() {
        let mut found: Vec<String> = pool()
            .all_messages()
            .filter(|m| m.full_name().starts_with("opi_"))
            .flat_map(|m| m.fields().collect::<Vec<_>>())
            .filter(|f| f.kind() == Kind::Bytes)
            .map(|f| {
                let name = f.full_name().trim_start_matches("opi_api.storage.v1.");
                name.trim_start_matches("opi_spdk.v1.").to_owned()
            })
            .collect();
        found.sort();
        let known = [
            "EncryptedVolume.key",
            "NvmeCredential.dhchap_ctrlr_key",
            "NvmeCredential.dhchap_key",
            "NvmeHost.dhchap_ctrlr_key",
            "NvmeHost.dhchap_key",
            "NvmeHost.psk",
            "NvmeSubsystemSpec.psk",
            "NvmeSubsystemStatus.fru_guid", // no secret
            "RekeyNvmeHostResponse.dhchap_ctrlr_key",
            "RekeyNvmeHostResponse.dhchap_key",
            "RekeyNvmeHostResponse.psk",
            "TcpController.psk",
        ];
        assert_eq!(found, known);
    }
}
