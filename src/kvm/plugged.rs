//! Wraps a kind of controller whose objects are also PCI devices of QEMU: created, then plugged; unplugged, then
//! removed. The inner kind only describes its device.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Address, Device, Machine, Model};
use crate::api::storage::{PciEndpoint, VolumeStats};
use crate::error::{Error, Violations};
use crate::health::{Part, Parted};
use crate::resource::{CallContext, Change, Claims, Key, Kind, Name, Object, Stage};
use crate::socket_access::SocketAccess;

/// Timeout for a rollback after the call's own deadline.
const UNDO: Duration = Duration::from_secs(5);

/// A kind whose controllers can be plugged.
pub trait Pluggable: Kind {
    /// The device model.
    const MODEL: Model;
    /// The field of the object's endpoint.
    const FIELD: &'static str;

    /// The PCI endpoint; `None` for a controller that is no PCI device.
    fn endpoint(object: &Self::Object) -> Option<&PciEndpoint>;

    /// Path of the controller's socket, relative to the directory of sockets.
    fn socket(name: &Name) -> PathBuf;
}

/// The QEMU that controllers are plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kvm {
    /// Address of its monitor.
    pub qmp_addr: Address,
    /// Its PCI buses, in the order in which physical functions are numbered.
    pub buses: Vec<String>,
    /// Whether vfio-user devices are unplugged also from a QEMU that is known to crash then.
    pub force_unplug: bool,
}

/// QEMU, if KVM mode is on, and the directory of the controllers' sockets.
pub struct Slots {
    machine: Option<Machine>,
    sockets: PathBuf,
    access: SocketAccess,
}

impl Slots {
    /// Slots of the QEMU of KVM mode, if that is on. `ctrlr_dir` has the controllers' sockets, which get this access.
    pub fn new(kvm: Option<&Kvm>, ctrlr_dir: &Path, access: SocketAccess) -> Arc<Self> {
        let machine =
            |kvm: &Kvm| Machine::new(kvm.qmp_addr.clone(), kvm.buses.clone(), kvm.force_unplug);
        // Absolute, since QEMU may run in another directory.
        let sockets = std::path::absolute(ctrlr_dir);
        Arc::new(Self {
            machine: kvm.map(machine),
            sockets: sockets.unwrap_or_else(|_| ctrlr_dir.to_owned()),
            access,
        })
    }

    /// Sets group and mode of a controller's socket, and of its own directory if it has one.
    fn open(&self, name: &Name, socket: &Path) -> Result<(), Error> {
        let path = self.sockets.join(socket);
        let own_dir = path.parent().filter(|dir| *dir != self.sockets);
        let opened = own_dir.map_or(Ok(()), |dir| self.access.admit(dir));
        opened
            .and_then(|()| self.access.apply(&path))
            .map_err(|reason| Error::failed_precondition(name, reason))
    }
}

/// The kind `K` with its controllers plugged into QEMU. Without KVM mode it is just `K`, and clients attach to the
/// socket themselves.
pub struct Plugged<K> {
    kind: K,
    slots: Arc<Slots>,
}

impl<K: Pluggable> Plugged<K> {
    /// Wraps `kind`.
    pub fn new(kind: K, slots: &Arc<Slots>) -> Self {
        Self {
            kind,
            slots: Arc::clone(slots),
        }
    }

    /// QEMU and the physical function, for a controller to plug.
    fn slot<'a>(&'a self, object: &K::Object) -> Option<(&'a Machine, i32)> {
        let machine = self.slots.machine.as_ref()?;
        // The default is function 0.
        let function = K::endpoint(object)?.physical_function.unwrap_or_default();
        Some((machine, function))
    }

    /// QEMU and the device, for a controller to plug.
    fn pci_device(
        &self,
        name: &Name,
        object: &K::Object,
    ) -> Result<Option<(&Machine, Device)>, Error> {
        let Some((machine, function)) = self.slot(object) else {
            return Ok(None);
        };
        let place = machine.place(function);
        let device = Device {
            id: Device::id_of(name),
            model: K::MODEL,
            place: place.map_err(|reason| Error::failed_precondition(name, reason))?,
            socket: self.slots.sockets.join(K::socket(name)),
        };
        Ok(Some((machine, device)))
    }

    async fn plug(&self, call: &CallContext, name: &Name, object: &K::Object) -> Result<(), Error> {
        match self.pci_device(name, object)? {
            Some((machine, device)) => machine.plug(&device, call.answer_by()).await,
            None => Ok(()),
        }
    }

    async fn unplug(
        &self,
        call: &CallContext,
        name: &Name,
        object: &K::Object,
    ) -> Result<(), Error> {
        match self.slot(object) {
            Some((machine, _)) => {
                let id = Device::id_of(name);
                machine.unplug(&id, K::MODEL, call.answer_by()).await
            }
            None => Ok(()),
        }
    }

    /// Sets access to the socket. A controller without a PCI endpoint has none.
    fn admit(&self, name: &Name, object: &K::Object) -> Result<(), Error> {
        match K::endpoint(object) {
            Some(_) => self.slots.open(name, &K::socket(name)),
            None => Ok(()),
        }
    }

    /// Sets access to the socket and plugs the device; the device of a known controller only if QEMU has lost it.
    async fn offer(
        &self,
        call: &CallContext,
        name: &Name,
        object: &K::Object,
        is_known: bool,
    ) -> Result<(), Error> {
        self.admit(name, object)?;
        match is_known {
            true => self.renew(call, name, object).await,
            false => self.plug(call, name, object).await,
        }
    }

    /// Plugs the device again if QEMU has lost it.
    async fn renew(
        &self,
        call: &CallContext,
        name: &Name,
        object: &K::Object,
    ) -> Result<(), Error> {
        match self.pci_device(name, object)? {
            Some((machine, device)) => machine.renew(&device, call.answer_by()).await,
            None => Ok(()),
        }
    }
}

impl<K: Pluggable> Kind for Plugged<K> {
    type Object = K::Object;

    const STAGE: Stage = K::STAGE;

    fn check(&self, object: &K::Object, violations: &mut Violations) {
        self.kind.check(object, violations);
        if let Some((machine, function)) = self.slot(object)
            && let Err(reason) = machine.place(function)
        {
            violations.add(format!("{}.physical_function", K::FIELD), reason);
        }
    }

    fn claims(&self, name: &Name, object: &K::Object) -> Claims {
        let claims = self.kind.claims(name, object);
        match self.slot(object) {
            Some((_, function)) => claims.owns(Key::from(format!("physical function/{function}"))),
            None => claims,
        }
    }

    fn device(&self, object: &K::Object) -> Option<String> {
        self.kind.device(object)
    }

    fn volume_ref<'a>(&self, object: &'a K::Object) -> Option<&'a str> {
        self.kind.volume_ref(object)
    }

    /// A restarted QEMU does not have the devices of its predecessor.
    async fn ensure(
        &self,
        call: &CallContext,
        name: &Name,
        object: K::Object,
    ) -> Result<K::Object, Error> {
        let is_known = !object.name().is_empty();
        let object = self.kind.ensure(call, name, object).await?;
        let offered = self.offer(call, name, &object, is_known).await;
        let error = match offered {
            Ok(()) => return Ok(object),
            Err(error) if is_known => return Err(error),
            Err(error) => error,
        };
        let undo = CallContext::within(UNDO);
        if let Err(left) = self.kind.remove(&undo, name, &object).await {
            tracing::error!(%name, %left, "could not remove what could not be plugged; it is retried");
            return Err(error.unsettled());
        }
        Err(error)
    }

    fn is_lost(&self, name: &Name, object: &K::Object) -> bool {
        self.kind.is_lost(name, object)
    }

    fn kept(&self, name: &Name, object: &K::Object) -> Vec<u8> {
        self.kind.kept(name, object)
    }

    fn restore(&self, name: &Name, object: &K::Object, kept: &[u8]) {
        self.kind.restore(name, object, kept);
    }

    async fn prepare(
        &self,
        call: &CallContext,
        name: &Name,
        wanted: &K::Object,
    ) -> Result<(), Error> {
        self.kind.prepare(call, name, wanted).await
    }

    async fn confirm(&self, name: &Name, object: &K::Object) -> Result<(), Error> {
        self.kind.confirm(name, object).await
    }

    /// A device cannot change its slot.
    async fn update(
        &self,
        call: &CallContext,
        name: &Name,
        change: Change<K::Object>,
    ) -> Result<K::Object, Error> {
        let slot = |object| self.slot(object).map(|(_, function)| function);
        if slot(&change.old) != slot(&change.wanted) {
            return Err(Error::immutable(K::FIELD));
        }
        let is_undo = change.is_undo;
        let updated = self.kind.update(call, name, change).await?;
        match self.admit(name, &updated) {
            // The object is as recorded again: `ensure` follows, which tells the fault and repairs it.
            Err(_) if is_undo => Ok(updated),
            // SPDK has the new version, to be withdrawn.
            Err(error) => Err(error.unsettled()),
            Ok(()) => Ok(updated),
        }
    }

    async fn withdraw(
        &self,
        call: &CallContext,
        name: &Name,
        back: &Change<K::Object>,
    ) -> Result<(), Error> {
        self.kind.withdraw(call, name, back).await
    }

    fn settled(&self, name: &Name) {
        self.kind.settled(name);
    }

    async fn foresee(
        &self,
        call: &CallContext,
        name: &Name,
        change: &Change<K::Object>,
    ) -> Result<Option<K::Object>, Error> {
        self.kind.foresee(call, name, change).await
    }

    /// A device whose controller stays is plugged again when that is ensured.
    async fn remove(
        &self,
        call: &CallContext,
        name: &Name,
        object: &K::Object,
    ) -> Result<(), Error> {
        self.unplug(call, name, object).await?;
        self.kind.remove(call, name, object).await
    }

    async fn stats(&self, name: &Name, object: &K::Object) -> Result<VolumeStats, Error> {
        self.kind.stats(name, object).await
    }

    fn refresh(&self, name: &Name, object: &mut K::Object) {
        self.kind.refresh(name, object);
    }

    fn hide_secrets(object: &mut K::Object) {
        K::hide_secrets(object);
    }
}

impl<K: Pluggable + Parted> Parted for Plugged<K> {
    fn part(&self, name: &Name, object: &K::Object) -> Option<Part> {
        self.kind.part(name, object)
    }
}
