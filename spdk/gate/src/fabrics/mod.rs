//! NVMe over Fabrics, behind the transport: Connect, identities, and the length of each command's data.

mod connect;
mod identity;
mod length;

pub use connect::{CONNECT_DATA, Connect, Fault, NQN_MAX, NQN_MIN};
pub use identity::{PSK_IDENTITY_MAX, is_well_formed, names};
pub use length::{
    ADMIN_DATA_MAX, Command, DSM_RANGE, DSM_RANGES_MAX, IDENTIFY_DATA, LOG_PAGE_UNIT, Queue,
};
