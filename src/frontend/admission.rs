//! Admission: which hosts may connect to a subsystem. These are the host of its `hostnqn` and its NvmeHosts.
//!
//! ```text
//!   hostnqn   NvmeHosts   who may connect
//!   empty     none        any host
//!   empty     some        these
//!   a host    any number  that one and these; an NvmeHost of the same NQN has its keys
//! ```
//!
//! The registry holds these hosts from reservation to removal, so a host whose record is not yet applied in SPDK keeps
//! the subsystem closed too. At one address either all hosts use TLS or none does, which is fixed when the address is
//! bound.

use super::nvme_subsystem::Parent;
use crate::error::Error;
use crate::resource::{Claims, Key, Name, Registry};

/// Adds the claim of an admitted host of the subsystem with this ID.
pub(super) fn admitted(claims: Claims, subsystem: &str, has_psk: bool) -> Claims {
    claims.shares(kind_of_hosts(subsystem, has_psk))
}

/// Returns the key that the NvmeHost of an NQN owns. The subsystem itself may name the same host: see
/// [`FirstHost`](super::host_recipe::FirstHost).
pub(super) fn hostnqn_of(subsystem: &str, hostnqn: &str) -> Key {
    Key::from(format!("host NQN of {subsystem}/{hostnqn}"))
}

/// Returns the key shared by all hosts of the subsystem that have a pre-shared key, or by all that have none.
fn kind_of_hosts(subsystem: &str, has_psk: bool) -> Key {
    let how = if has_psk { "with" } else { "without" };
    Key::from(format!("hosts {how} TLS/{subsystem}"))
}

/// The hosts that a subsystem admits by NQN.
pub(super) struct Hosts {
    with_psk: Vec<Name>,
    without: Vec<Name>,
}

impl Hosts {
    /// Returns the admitted hosts of the subsystem with this ID, except that of `name`.
    pub(super) fn beside(registry: &Registry, subsystem: &str, name: Option<&Name>) -> Self {
        let of = |has_psk| {
            let mut hosts = registry.users_of_key(&kind_of_hosts(subsystem, has_psk));
            hosts.retain(|host| Some(host) != name);
            hosts
        };
        Self {
            with_psk: of(true),
            without: of(false),
        }
    }

    /// Returns all admitted hosts of the subsystem with this ID.
    pub(super) fn of(registry: &Registry, subsystem: &str) -> Self {
        Self::beside(registry, subsystem, None)
    }

    /// Returns whether the subsystem is open to any host.
    pub(super) fn is_empty(&self) -> bool {
        self.with_psk.is_empty() && self.without.is_empty()
    }

    /// Returns whether TCP controllers of the subsystem use TLS.
    pub(super) fn speak_tls(&self) -> bool {
        !self.with_psk.is_empty()
    }

    /// Checks that a host of `name` agrees with the others on the use of TLS.
    pub(super) fn check_psk(&self, name: &Name, has_psk: bool) -> Result<(), Error> {
        let others = if has_psk {
            &self.without
        } else {
            &self.with_psk
        };
        let Some(other) = others.first() else {
            return Ok(());
        };
        let what = match has_psk {
            true => format!(
                "psk: {other} admits a host without one, and the controllers of a subsystem speak TLS with all \
                 of its hosts or with none: leave it empty, or give that host one first"
            ),
            false => format!(
                "psk: {other} admits a host with one, and the controllers of a subsystem speak TLS with all of \
                 its hosts or with none: give a psk here too"
            ),
        };
        Err(Error::failed_precondition(name, what))
    }
}

impl Parent {
    /// Fails if the subsystem has controllers, as `what` concerns its only host: the change would open the subsystem
    /// to any host or close it to all others, and decides whether controllers use TLS.
    pub(super) fn check_no_controllers(
        &self,
        registry: &Registry,
        name: &Name,
        what: &str,
    ) -> Result<(), Error> {
        let users = registry.users_of(&self.name);
        let mut controllers = users.iter().filter(|user| {
            let collection = user.key().as_str().rsplit('/').nth(1);
            collection == Some("nvmeControllers")
        });
        let Some(controller) = controllers.next() else {
            return Ok(());
        };
        let what = format!(
            "{what}, and hosts may be connected by {controller}: delete its controllers first, or \
                            name a host in its spec.hostnqn"
        );
        Err(Error::failed_precondition(name, what))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn hosts_of_a_subsystem_all_have_a_psk_or_none_has() {
        let registry = Arc::new(Registry::default());
        let name = |id: &str| Name::new(format!("nvmeSubsystems/s/nvmeHosts/{id}"), None);
        let hold = |id: &str, hostnqn: &str, has_psk| {
            let claims = admitted(Claims::new(), "s", has_psk).owns(hostnqn_of("s", hostnqn));
            let reserved = registry.reserve(&name(id), &claims)?;
            reserved.settle(claims);
            Ok::<_, Error>(())
        };
        assert!(Hosts::of(&registry, "s").is_empty());
        hold("a", "nqn.a", true).expect("the first");
        let error = hold("b", "nqn.a", true).expect_err("the same NQN");
        let text = error.to_string();
        assert!(
            text.contains("host NQN of s \"nqn.a\" already belongs"),
            "{text}"
        );

        let hosts = Hosts::of(&registry, "s");
        assert!(hosts.speak_tls() && !hosts.is_empty());
        hosts.check_psk(&name("b"), true).expect("all have one");
        let error = hosts
            .check_psk(&name("b"), false)
            .expect_err("one has none");
        assert!(error.to_string().contains("nvmeHosts/a"), "{error}");
        let beside = Hosts::beside(&registry, "s", Some(&name("a")));
        assert!(beside.is_empty(), "itself does not count");
        assert!(Hosts::of(&registry, "other").is_empty());
    }
}
