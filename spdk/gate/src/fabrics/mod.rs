//! NVMe over Fabrics above the transport: Connect, PSK identities, and the data length of each command.

mod binder;
mod connect;
mod identity;
mod length;
mod stranger;

pub use binder::{Binder, binder_of};
pub use connect::{CONNECT_DATA, Connect, Fault, NQN_MAX, NQN_MIN};
pub use identity::{PSK_IDENTITY_MAX, is_well_formed, names, nqns};
pub use length::{
    ADMIN_DATA_MAX, Command, DSM_RANGE, DSM_RANGES_MAX, IDENTIFY_DATA, LOG_PAGE_UNIT, Queue,
};
pub use stranger::{FIRST_MS, FORGET_MS, FREE, KNOWN_MS, Stranger, TURN_MAX_MS, Turn, WAIT_MAX_MS};
