//! The steps of plugging and unplugging a device, over one connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use super::device::{Device, Place};
use super::fault::Fault;
use super::session::{Session, with_deadline};
use super::state::{self, Chardev, Presence};

/// Timeout for a guest driver to take a plugged device. QEMU does not report whether the guest is still booting or
/// will load a driver later.
const DRIVER: Duration = Duration::from_secs(3);

/// Poll interval for state changes without an event.
const STEP: Duration = Duration::from_millis(50);

/// An operation on the device of an ID.
pub(super) struct Operation<'a> {
    pub(super) qemu: Arc<Session>,
    pub(super) id: &'a str,
    pub(super) deadline: Instant,
}

impl Operation<'_> {
    /// Plugs a device that QEMU does not have, and waits for a guest driver.
    pub(super) async fn plug(&self, device: &Device) -> Result<(), Fault> {
        if device.model.has_chardev() {
            self.execute("chardev-add", device.add_chardev(self.qemu.version())?)
                .await?;
            // With a disconnected chardev, `device_add` would block the whole machine until it is connected.
            self.connected().await?;
        }
        self.execute("device_add", device.add()?).await?;
        self.taken().await
    }

    /// Waits until QEMU has connected to the socket of a vhost-user device.
    pub(super) async fn connected(&self) -> Result<(), Fault> {
        let connected = async {
            while !self
                .chardev()
                .await?
                .is_some_and(|chardev| chardev.is_connected())
            {
                sleep(STEP).await;
            }
            Ok(())
        };
        with_deadline(
            self.deadline,
            "QEMU did not connect to the controller's socket",
            connected,
        )
        .await?
    }

    /// Waits until a guest driver has taken the device.
    async fn taken(&self) -> Result<(), Fault> {
        let begin = Instant::now();
        // At most half of the remaining time, so that the answer also meets the deadline.
        let timeout = DRIVER.min(self.deadline.saturating_duration_since(begin) / 2);
        loop {
            match self.presence().await? {
                Presence::Taken => return Ok(()),
                Presence::Absent => return Err(Fault::Vanished),
                Presence::Plugged if !self.is_running().await? => return Ok(()),
                Presence::Plugged if begin.elapsed() < timeout => sleep(STEP).await,
                Presence::Plugged => {
                    let waited = begin.elapsed().as_secs_f32();
                    tracing::warn!(
                        device = self.id,
                        waited,
                        "plugged, but no driver of the guest has taken it yet"
                    );
                    return Ok(());
                }
            }
        }
    }

    /// Unplugs the device and removes its character device, as far as they exist. Refused for a QEMU that is known to
    /// crash then, unless `may_end`.
    pub(super) async fn unplug(&self, may_end: bool) -> Result<(), Fault> {
        if !may_end && self.ends_of_unplug().await? {
            return Err(Fault::WouldEnd(self.qemu.version()));
        }
        // Subscribed before the command is sent, since the event may precede the answer.
        let mut events = self.qemu.watch();
        let deleted = async {
            loop {
                let event = events.next().await?;
                match event.name.as_str() {
                    _ if event.device() != Some(self.id) => {}
                    "DEVICE_DELETED" => return Ok(()),
                    "DEVICE_UNPLUG_GUEST_ERROR" => return Err(Fault::Kept),
                    _ => {}
                }
            }
        };
        match self.execute("device_del", json!({ "id": self.id })).await {
            Err(Fault::Refused { class, .. }) if class == "DeviceNotFound" => {}
            Err(fault) if !fault.is_unplug_under_way() => return Err(fault),
            _ => {
                with_deadline(
                    self.deadline,
                    "the guest did not give the device up",
                    deleted,
                )
                .await??
            }
        }
        if self.chardev().await?.is_some() {
            self.execute("chardev-remove", json!({ "id": self.id }))
                .await?;
        }
        Ok(())
    }

    /// Whether unplugging the vfio-user device is known to crash this QEMU. Without the device in QEMU nothing can
    /// happen.
    async fn ends_of_unplug(&self) -> Result<bool, Fault> {
        Ok(self.qemu.version().ends_of_vfio_user_unplug()
            && self.presence().await? != Presence::Absent)
    }

    /// The plug state of the device.
    pub(super) async fn presence(&self) -> Result<Presence, Fault> {
        state::presence(self.execute("query-pci", Value::Null).await?, self.id)
    }

    /// Whether the plugged device is at this place.
    pub(super) async fn is_at(&self, place: &Place) -> Result<bool, Fault> {
        let path = format!("/machine/peripheral/{}", self.id);
        let property = |property| {
            let arguments = json!({ "path": path, "property": property });
            self.execute("qom-get", arguments)
        };
        Ok(place.is(&property("parent_bus").await?, &property("addr").await?))
    }

    /// The device's character device, if there is one.
    pub(super) async fn chardev(&self) -> Result<Option<Chardev>, Fault> {
        state::chardev(self.execute("query-chardev", Value::Null).await?, self.id)
    }

    /// Whether the guest's CPUs run, without which the guest cannot answer.
    async fn is_running(&self) -> Result<bool, Fault> {
        state::is_running(&self.execute("query-status", Value::Null).await?)
    }

    async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, Fault> {
        self.qemu.execute(command, arguments, self.deadline).await
    }
}
