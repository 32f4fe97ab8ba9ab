//! The gRPC service of NvmeHosts, and the generation of their keys, which are returned in one response only.

use std::sync::Arc;

use super::NvmeHosts;
use crate::api::own::{
    CreateNvmeHostRequest, NvmeHost, RekeyNvmeHostRequest, RekeyNvmeHostResponse,
};
use crate::error::{Error, Violations};
use crate::interchange;
use crate::resource::service::service;
use crate::resource::{CallContext, Collection, Create, Update};

service! {
    /// Admitted hosts of subsystems, with their keys.
    own::NvmeHostService {
        serves { nvme_hosts: NvmeHost[own(create)] as NvmeHosts }
        beside {
            async fn rekey_nvme_host(
                &self,
                request: tonic::Request<RekeyNvmeHostRequest>,
            ) -> Result<tonic::Response<RekeyNvmeHostResponse>, tonic::Status> {
                let call = CallContext::of(request.metadata());
                let made = rekey(&self.nvme_hosts, call, request.get_ref()).await?;
                Ok(tonic::Response::new(made))
            }
        }
    }
}

/// Creates a host. The keys that the request asks for are generated before it is admitted.
///
/// # Errors
/// INVALID_ARGUMENT for a key that is given and to be generated, and the errors of [`Collection::create`].
async fn create(
    hosts: &Arc<Collection<NvmeHosts>>,
    call: CallContext,
    mut request: CreateNvmeHostRequest,
) -> Result<NvmeHost, Error> {
    let asked = Asked {
        psk: request.generate_psk,
        dhchap_key: request.generate_dhchap_key,
        dhchap_ctrlr_key: request.generate_dhchap_ctrlr_key,
    };
    let mut made = RekeyNvmeHostResponse::default();
    if let Some(host) = &mut request.nvme_host {
        let mut violations = Violations::default();
        for (field, is_asked, given) in [
            ("psk", asked.psk, &host.psk),
            ("dhchap_key", asked.dhchap_key, &host.dhchap_key),
            (
                "dhchap_ctrlr_key",
                asked.dhchap_ctrlr_key,
                &host.dhchap_ctrlr_key,
            ),
        ] {
            if is_asked && !given.is_empty() {
                violations.add(
                    field,
                    format!("is given, and generate_{field} asks for another"),
                );
            }
        }
        let given = violations.into_result();
        given.map_err(|error| error.under(hosts.meta().field()))?;
        let parent = hosts.meta().parse_parent(&request.parent)?;
        let name = hosts.meta().name(parent.as_ref(), &request.nvme_host_id);
        // A subsystem that does not exist is the create's error.
        let subnqn = hosts.kind().parent(&name).map(|parent| parent.nqn);
        made = asked.generate(&host.hostnqn, &subnqn.unwrap_or_default());
        for (key, made) in [
            (&mut host.psk, &made.psk),
            (&mut host.dhchap_key, &made.dhchap_key),
            (&mut host.dhchap_ctrlr_key, &made.dhchap_ctrlr_key),
        ] {
            if !made.is_empty() {
                key.clone_from(made);
            }
        }
    }
    let request = Create {
        parent: request.parent,
        id: request.nvme_host_id,
        object: request.nvme_host,
    };
    let mut created = hosts.create(call, request).await?;
    created.psk = made.psk;
    created.dhchap_key = made.dhchap_key;
    created.dhchap_ctrlr_key = made.dhchap_ctrlr_key;
    Ok(created)
}

/// Which keys of a host are to be generated.
struct Asked {
    psk: bool,
    dhchap_key: bool,
    dhchap_ctrlr_key: bool,
}

impl Asked {
    fn generate(&self, hostnqn: &str, subnqn: &str) -> RekeyNvmeHostResponse {
        let mut made = RekeyNvmeHostResponse::default();
        if self.psk {
            made.psk = interchange::new_psk(hostnqn, subnqn);
        }
        if self.dhchap_key {
            made.dhchap_key = interchange::new_dhchap();
        }
        if self.dhchap_ctrlr_key {
            made.dhchap_ctrlr_key = interchange::new_dhchap();
        }
        made
    }
}

/// Generates the requested keys, or new ones of each kind that the host has, and installs them by an update.
///
/// # Errors
/// INVALID_ARGUMENT, NOT_FOUND, and the errors of the update.
async fn rekey(
    hosts: &Arc<Collection<NvmeHosts>>,
    call: CallContext,
    request: &RekeyNvmeHostRequest,
) -> Result<RekeyNvmeHostResponse, Error> {
    let name = hosts.meta().parse("name", &request.name)?;
    let host = hosts.object(name.key());
    let host = host.ok_or_else(|| Error::not_found(&name))?;
    let asked = [request.psk, request.dhchap_key, request.dhchap_ctrlr_key];
    let has = [&host.psk, &host.dhchap_key, &host.dhchap_ctrlr_key].map(|key| !key.is_empty());
    let [psk, dhchap_key, dhchap_ctrlr_key] = match asked {
        [false, false, false] => has,
        asked => asked,
    };
    if ![psk, dhchap_key, dhchap_ctrlr_key].contains(&true) {
        let what =
            "is required, or dhchap_key: the host has no key that a new one could be made for";
        return Err(Error::invalid("psk", what));
    }
    if dhchap_ctrlr_key && !dhchap_key && host.dhchap_key.is_empty() {
        let what = "is required with dhchap_ctrlr_key, since the host has none: the host authenticates first";
        return Err(Error::invalid("dhchap_key", what));
    }
    let subnqn = hosts.kind().parent(&name)?.nqn;
    let asked = Asked {
        psk,
        dhchap_key,
        dhchap_ctrlr_key,
    };
    let made = asked.generate(&host.hostnqn, &subnqn);
    let paths = [
        ("psk", psk),
        ("dhchap_key", dhchap_key),
        ("dhchap_ctrlr_key", dhchap_ctrlr_key),
    ];
    let until = ("old_keys_until", request.old_keys_until.is_some());
    let paths = paths.into_iter().chain([until]);
    let paths = paths.filter(|(_, wanted)| *wanted);
    let update = Update {
        object: Some(NvmeHost {
            name: name.to_string(),
            psk: made.psk.clone(),
            dhchap_key: made.dhchap_key.clone(),
            dhchap_ctrlr_key: made.dhchap_ctrlr_key.clone(),
            old_keys_until: request.old_keys_until,
            ..NvmeHost::default()
        }),
        mask: Some(paths.map(|(path, _)| path.to_owned()).collect()),
        allow_missing: false,
    };
    hosts.update(call, update).await?;
    Ok(made)
}
