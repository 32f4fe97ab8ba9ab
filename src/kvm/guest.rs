//! What a kind of controller needs of KVM mode, so that it reads the same with and without it.

use std::path::PathBuf;

use super::{Device, Machine, Model};
use crate::api::storage::PciEndpoint;
use crate::config::Kvm;
use crate::error::{Error, Violations};
use crate::resource::{CallContext, Key, Name, Uses};

/// The machine that controllers are plugged into, if KVM mode is on. Without it there is nothing to
/// check and to do: whoever wants a controller attaches to its socket.
#[derive(Clone, Default)]
pub struct Guest(Option<Machine>);

impl Guest {
    /// The one of the configuration.
    pub fn new(config: Option<&Kvm>) -> Self {
        Self(config.map(|kvm| Machine::new(kvm.qmp_addr.clone(), kvm.buses.clone())))
    }

    /// Finds fault with a physical function that has no slot.
    pub fn check(&self, endpoint: &PciEndpoint, violations: &mut Violations) {
        if let Some(Err(reason)) = self.0.as_ref().map(|machine| machine.place(function(endpoint))) {
            violations.add(FIELD, reason);
        }
    }

    /// Has the slot for itself.
    #[must_use]
    pub fn uses(&self, endpoint: &PciEndpoint, uses: Uses) -> Uses {
        match self.0 {
            Some(_) => uses.owns(Key::from(format!("physical function/{}", function(endpoint)))),
            None => uses,
        }
    }

    /// Plugs the device of the controller `name`, which serves `socket`. See [`Machine::plug`].
    pub async fn plug(
        &self,
        call: &CallContext,
        name: &Name,
        model: Model,
        endpoint: &PciEndpoint,
        socket: PathBuf,
    ) -> Result<(), Error> {
        let Some(machine) = &self.0 else { return Ok(()) };
        let place = machine.place(function(endpoint)).map_err(|reason| Error::invalid(FIELD, reason))?;
        let device = Device { id: Device::id_of(name), model, place, socket };
        machine.plug(&device, call.deadline).await
    }

    /// Unplugs the device of the controller `name`. See [`Machine::unplug`].
    pub async fn unplug(&self, call: &CallContext, name: &Name) -> Result<(), Error> {
        match &self.0 {
            Some(machine) => machine.unplug(&Device::id_of(name), call.deadline).await,
            None => Ok(()),
        }
    }
}

/// Where all kinds of controllers have it.
const FIELD: &str = "spec.pcie_id.physical_function";

/// A function that is not given is function 0.
fn function(endpoint: &PciEndpoint) -> i32 {
    endpoint.physical_function.unwrap_or_default()
}
