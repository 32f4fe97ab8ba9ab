//! Hosts connected to NVMe subsystems.

use spdk::nvmf::{self, Connected, Queue, Which};

use super::Objects;
use crate::api::own::{
    DisconnectHostRequest, DisconnectHostResponse, Host, HostQueue, ListHostsRequest,
    ListHostsResponse,
};
use crate::error::{Error, Violations};
use crate::resource::{Key, Name, Registry, paging};

/// The name of the subsystem with this NQN; `None` if the API has no such subsystem.
pub(crate) fn subsystem_of(registry: &Registry, nqn: &str) -> Option<Name> {
    registry.owner(&Key::from(format!("nqn/{nqn}")))
}

/// Highest controller ID (CNTLID) of the NVMe specification.
const CONTROLLER_MAX: u16 = 0xffef;

impl Objects {
    /// Lists a page of hosts.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, or NOT_FOUND for an unknown subsystem.
    pub(super) async fn list_of_hosts(
        &self,
        request: &ListHostsRequest,
    ) -> Result<ListHostsResponse, Error> {
        let size = paging::size(request.page_size)?;
        let after = paging::resume(&request.page_token, "")?;
        let parent = match request.parent.as_str() {
            "" => None,
            _ => Some(self.subsystem("parent", &request.parent)?.0),
        };
        let mut hosts = self.hosts().await?;
        hosts.retain(|(name, _)| parent.as_ref().is_none_or(|parent| parent == name));
        let position = |(name, host): &(Name, Connected)| position(name, host);
        hosts.sort_by_cached_key(position);
        let from = after.map_or(0, |after| {
            hosts.partition_point(|host| position(host) <= after)
        });
        let rest = hosts.get(from..).unwrap_or_default();
        let page = rest.get(..size).unwrap_or(rest);
        let next_page_token = match page.last() {
            Some(last) if page.len() < rest.len() => paging::token(&position(last)),
            _ => String::new(),
        };
        Ok(ListHostsResponse {
            hosts: page.iter().map(|(name, host)| shown(name, host)).collect(),
            next_page_token,
        })
    }

    /// Disconnects hosts.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, NOT_FOUND for an unknown subsystem or host, FAILED_PRECONDITION for a virtual machine.
    pub(super) async fn disconnect(
        &self,
        request: &DisconnectHostRequest,
    ) -> Result<DisconnectHostResponse, Error> {
        let (name, nqn) = self.subsystem("name", &request.name)?;
        let which = which(request)?;
        let mut hosts = self.hosts().await?;
        hosts.retain(|(of, host)| *of == name && is_selected(&which, host));
        let absent = || Error::not_found(format!("{} of {name}", describe(&which)));
        if hosts.is_empty() {
            return Err(absent());
        }
        if hosts.iter().all(|(_, host)| host.is_guest) {
            let what = "it is a virtual machine, which does not connect again by itself: delete its controller";
            return Err(Error::failed_precondition(&name, what));
        }
        let meant = which.clone();
        let disconnected = self
            .spdk
            .call(async move |spdk| nvmf::disconnect(spdk, &nqn, &meant).await);
        match disconnected.await? {
            Ok(()) => {}
            // Race: the host disconnected in the meantime.
            Err(error) if error.errno.0 == spdk::errno::ENOENT => return Err(absent()),
            Err(error) => return Err(Error::internal("disconnecting a host", error)),
        }
        let ended = hosts.iter().filter(|(_, host)| !host.is_guest);
        Ok(DisconnectHostResponse {
            hosts: ended.map(|(name, host)| shown(name, host)).collect(),
        })
    }

    /// The hosts of the API's subsystems.
    async fn hosts(&self) -> Result<Vec<(Name, Connected)>, Error> {
        let found = self.spdk.call(nvmf::connections).await?;
        let found = found.map_err(|error| Error::internal("listing hosts", error))?;
        let named = found
            .hosts()
            .into_iter()
            .filter_map(|host| Some((subsystem_of(&self.shared.registry, &host.subsystem)?, host)));
        Ok(named.collect())
    }

    /// Resolves a subsystem of the API to its name and NQN.
    fn subsystem(&self, field: &str, name: &str) -> Result<(Name, String), Error> {
        let name = self.subsystems.meta().parse(field, name)?;
        let object = self.subsystems.object(name.key());
        let object = object.ok_or_else(|| Error::not_found(&name))?;
        Ok((name, object.spec.unwrap_or_default().nqn))
    }
}

fn which(request: &DisconnectHostRequest) -> Result<Which, Error> {
    let mut violations = Violations::default();
    let host = Some(request.host_nqn.clone()).filter(|host| !host.is_empty());
    if let Some(Err(reason)) = host.as_deref().map(nvmf::nqn::check_connected) {
        violations.add("host_nqn", reason);
    }
    let controller_id = request.controller_id.and_then(|id| {
        let known = u16::try_from(id).ok().filter(|id| *id <= CONTROLLER_MAX);
        if known.is_none() {
            let what = format!("{id} is no ID of a controller: 0 to {CONTROLLER_MAX}");
            violations.add("controller_id", what);
        }
        known
    });
    if request.host_nqn.is_empty() && request.controller_id.is_none() {
        let what = "is required, or controller_id: which host?";
        violations.add("host_nqn", what);
    }
    violations.into_result()?;
    Ok(Which {
        host,
        controller_id,
    })
}

fn is_selected(which: &Which, host: &Connected) -> bool {
    let by_host = which.host.as_ref().is_none_or(|nqn| *nqn == host.host);
    let id = which.controller_id;
    by_host && id.is_none_or(|id| id == host.controller_id)
}

/// Describes the requested hosts, for an error.
fn describe(which: &Which) -> String {
    match (&which.host, which.controller_id) {
        (Some(host), None) => format!("host {host}"),
        (Some(host), Some(id)) => format!("host {host} with controller {id}"),
        (None, Some(id)) => format!("the host with controller {id}"),
        (None, None) => "no host".to_owned(),
    }
}

/// The position in the list, as a page token.
fn position(name: &Name, host: &Connected) -> String {
    format!("{}/{:05}", name.key(), host.controller_id)
}

fn shown(name: &Name, host: &Connected) -> Host {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let queue = |of: &Queue| HostQueue {
        id: of.id.into(),
        size: number(of.size),
        core: number(of.core),
        completed_io_count: i64::try_from(of.completed_io).unwrap_or(i64::MAX),
    };
    Host {
        subsystem: name.to_string(),
        host_nqn: host.host.clone(),
        controller_id: host.controller_id.into(),
        address: host.address.clone(),
        virtual_machine: host.is_guest,
        queues: host.queues.iter().map(queue).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_by_its_nqn_or_its_controller_and_by_something() {
        let request = |host_nqn: &str, controller_id| DisconnectHostRequest {
            name: String::new(),
            host_nqn: host_nqn.to_owned(),
            controller_id,
        };
        let nqn = "nqn.2022-09.io.spdk:h";
        assert_eq!(which(&request(nqn, None)).unwrap().controller_id, None);
        let seen = "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba2fa111d2883fb9a761bde3fb";
        let by_name = which(&request(seen, None)).unwrap();
        assert_eq!(by_name.host.as_deref(), Some(seen));
        let by_id = which(&request("", Some(0))).unwrap();
        assert_eq!((by_id.host, by_id.controller_id), (None, Some(0)));
        for (host, id, field) in [
            ("", None, "host_nqn"),
            ("x", None, "host_nqn"),
            ("", Some(-1), "controller_id"),
            (nqn, Some(0xfff0), "controller_id"),
        ] {
            let error = which(&request(host, id)).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
