//! Address space of this process that clients take, bounded for each and for all.

use std::sync::{Arc, LazyLock};

use spdk_gate::vhost_user::Fault;
use spdk_gate::vhost_user::memory::Table;
use spdk_gate::vhost_user::room::{self, Room};

use crate::memory;

/// The room of all devices.
static ALL: Room = Room::new(room::ALL);

static MACHINE: LazyLock<u64> = LazyLock::new(memory::of_the_machine);

/// Creates the room of one client, which its device serves alone.
pub(super) fn of_a_client() -> Arc<Room> {
    Arc::new(Room::new(room::device_limit(*MACHINE)))
}

/// Checks that the machine could hold the memory of a table.
pub(super) fn check(table: &Table, dma: bool) -> Result<(), Fault> {
    room::check_table(table.bytes(), *MACHINE, dma)
}

/// Room that a mapping takes; given back when dropped.
pub(super) struct Taken {
    device: Arc<Room>,
    bytes: u64,
}

impl Taken {
    pub(super) fn new(device: &Arc<Room>, bytes: u64) -> Result<Self, Fault> {
        room::take_both(device, &ALL, bytes)?;
        Ok(Self {
            device: Arc::clone(device),
            bytes,
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.device.give(self.bytes);
        ALL.give(self.bytes);
    }
}
