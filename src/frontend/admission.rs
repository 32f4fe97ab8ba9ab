//! Who may connect to a subsystem: the host of its `hostnqn`, and its NvmeHosts.
//!
//! ```text
//!   hostnqn   NvmeHosts   who may connect
//!   empty     none        any host
//!   empty     some        these
//!   a host    any number  that one and these
//! ```
//!
//! The registry knows them from when they are reserved until they are gone, so a host whose record waits for
//! SPDK keeps the subsystem closed too. At one address all hosts speak TLS or none does, and which is settled when
//! the address is bound.

use super::nvme_subsystem::Parent;
use crate::error::Error;
use crate::resource::{Claims, Key, Name, Registry};

/// With what a host of the subsystem with this ID has and tells.
pub(super) fn admitted(claims: Claims, subsystem: &str, hostnqn: &str, has_psk: bool) -> Claims {
    claims
        .owns(format!("host NQN of {subsystem}/{hostnqn}"))
        .shares(kind_of_hosts(subsystem, has_psk))
}

/// What hosts share that have a pre-shared key, or that have none.
fn kind_of_hosts(subsystem: &str, has_psk: bool) -> Key {
    let how = if has_psk { "with" } else { "without" };
    Key::from(format!("hosts {how} TLS/{subsystem}"))
}

/// The hosts that a subsystem admits by name.
pub(super) struct Hosts {
    with_psk: Vec<Name>,
    without: Vec<Name>,
}

impl Hosts {
    /// Of the subsystem with this ID, but for those of `name`.
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

    /// All of the subsystem with this ID.
    pub(super) fn of(registry: &Registry, subsystem: &str) -> Self {
        Self::beside(registry, subsystem, None)
    }

    /// Whether any host may connect.
    pub(super) fn is_empty(&self) -> bool {
        self.with_psk.is_empty() && self.without.is_empty()
    }

    /// Whether TCP controllers of the subsystem speak TLS.
    pub(super) fn speak_tls(&self) -> bool {
        !self.with_psk.is_empty()
    }

    /// Whether a host of `name` could connect to where these do.
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
    /// Whether `what` may be done to its only host: that opens it to any host or closes it to all others, and
    /// decides how its controllers speak.
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
            let claims = admitted(Claims::new(), "s", hostnqn, has_psk);
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
