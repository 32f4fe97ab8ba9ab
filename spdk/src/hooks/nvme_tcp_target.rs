//! Hooks of NVMe/TCP, target side (`spdk/changes/include/nvme_tcp_target.h`), called by `lib/nvmf/tcp.c`.

use spdk_gate::nvme_tcp_target::{
    Connection, Expected, HOST_QUEUES_FREE, Phase, Supply, Verdict, capsule, common_header,
    h2c_data,
};

use crate::memory;

/// `struct opi_nvme_tcp_connection`.
#[repr(C)]
pub struct RawConnection {
    in_capsule_max: u32,
    transfer_max: u32,
    phase: u8,
    cpda: u8,
    is_admin: bool,
    header_digest: bool,
    data_digest: bool,
}

/// `struct opi_nvme_tcp_expected`.
#[repr(C)]
pub struct RawExpected {
    next: u32,
    length: u32,
    cid: u16,
    asked: bool,
}

impl RawConnection {
    fn checked(&self) -> Connection {
        Connection {
            phase: match self.phase {
                0 => Phase::New,
                1 => Phase::Unadmitted,
                2 => Phase::Connected,
                4 => Phase::Authenticating,
                5 => Phase::Discovering,
                _ => Phase::Closed,
            },
            is_admin: self.is_admin,
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            cpda: self.cpda,
            in_capsule_max: self.in_capsule_max,
            transfer_max: self.transfer_max,
        }
    }
}

/// Returns 0, or the fatal error status in the low byte and the field's offset above it.
fn encode<T>(verdict: Verdict<T>) -> u32 {
    match verdict {
        Ok(_) => 0,
        Err(refusal) => u32::from(refusal.fatal as u8) | u32::from(refusal.offset) << 8,
    }
}

/// Validates the first 8 bytes of a PDU.
///
/// # Safety
/// Both pointers are valid for reads; `header` has 8 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_nvme_tcp_header(
    connection: *const RawConnection,
    header: *const [u8; 8],
) -> u32 {
    // SAFETY: by the caller's contract both are valid for reads; they are copied or only read during this call.
    let (connection, header) = unsafe { (&*connection, *header) };
    encode(common_header(&connection.checked(), header))
}

/// Validates a command with `inside` bytes of data in its capsule.
///
/// # Safety
/// Both pointers are valid for reads; `command` has 64 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_nvme_tcp_capsule(
    connection: *const RawConnection,
    command: *const [u8; 64],
    inside: u32,
) -> u32 {
    // SAFETY: by the caller's contract both are valid for reads, and nobody writes to them during this call.
    let (connection, command) = unsafe { (&*connection, &*command) };
    encode(capsule(&connection.checked(), command, inside))
}

/// Validates the header of an H2CData against what its request expects.
///
/// # Safety
/// All pointers are valid for reads; `header` has 24 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opi_gate_nvme_tcp_h2c_data(
    connection: *const RawConnection,
    expected: *const RawExpected,
    header: *const [u8; 24],
) -> u32 {
    // SAFETY: by the caller's contract all are valid for reads, and nobody writes to them during this call.
    let (connection, raw, header) = unsafe { (&*connection, &*expected, &*header) };
    let expected = Expected {
        asked: raw.asked,
        cid: raw.cid,
        next: raw.next,
        length: raw.length,
    };
    encode(h2c_data(&connection.checked(), &expected, header))
}

/// Whether a host with `held` of the `all` queues of hosts may have another one of `bytes` bytes. Takes a microsecond
/// at a host of many queues, when it connects a queue.
#[unsafe(no_mangle)]
pub extern "C" fn opi_gate_nvme_tcp_queue(held: u32, all: u32, bytes: u64) -> bool {
    if held < HOST_QUEUES_FREE {
        return true;
    }
    let supply = Supply {
        memory: memory::read().free,
        queue: bytes,
        files: file_limit(),
    };
    supply.allows(held, all)
}

/// The process's limit of file descriptors.
fn file_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes to `limit` alone.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if rc == 0 { limit.rlim_cur } else { u64::MAX }
}
